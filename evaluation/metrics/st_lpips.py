"""ST-LPIPS: a perceptual distance trained on human judgements that a shift by a pixel hardly changes (Ghildyal & Liu,
"Shift-tolerant Perceptual Similarity Metric", ECCV 2022).

As LPIPS (Zhang et al., 2018), with blurred sub-sampling in place of strides: on AlexNet, which is what is reported, and
on VGG16, which is trained with. It is not LPIPS, and its values are not LPIPS values. The weights are those of the
`stlpips-pytorch` package, whose code is not used.
"""
from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

PACKAGE = "stlpips_pytorch"
REMEDY = "`pip install -r requirements-perceptual.txt`"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1], as LPIPS has them
SMALLEST_NORM = 1e-10
SMALLEST_SQUARE = 1e-20  # under the root, whose slope at 0 is not finite
MIN_SIDE = 32  # pixels; below, nothing is left at the last layers


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network: its name in the file, kernel and padding, and what stands around it."""

    name: str
    kernel: int = 3
    padding: int = 1
    halved_before: bool = False  # by a maximum and a blurred sub-sampling
    halved_after: bool = False  # by a blurred sub-sampling, before the ReLU
    judged: bool = True  # whether its answers are part of the distance


@dataclass(frozen=True)
class Architecture:
    """A network below the distance."""

    file: str  # in the package
    pool: int  # side of the maximum before a sub-sampling
    convolutions: tuple[Convolution, ...]


def _vgg_slice(number: int, names: tuple[int, ...]) -> list[Convolution]:
    return [Convolution(f"slice{number}.{name}", halved_before=number > 1 and name == names[0],
                        judged=name == names[-1]) for name in names]


ALEXNET = Architecture("weights/vST0.0/alex_shift_tolerant.pth", 3, (
    Convolution("slice1.0", 11, 2, halved_after=True), Convolution("slice2.5", 5, 2, halved_before=True),
    Convolution("slice3.9", halved_before=True), Convolution("slice4.11"), Convolution("slice5.13")))
VGG16 = Architecture("weights/vST0.0/vgg_shift_tolerant.pth", 2, (
    *_vgg_slice(1, (0, 2)), *_vgg_slice(2, (6, 8)), *_vgg_slice(3, (12, 14, 16)), *_vgg_slice(4, (20, 22, 24)),
    *_vgg_slice(5, (28, 30, 32))))


def find_weights(architecture: Architecture = ALEXNET) -> Path | None:
    """The file of the installed package, if there is one."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations)), architecture.file)
    return path if path.is_file() else None


class STLPIPS(nn.Module):
    """Distance of pictures (B, 3, H, W) in [0, 1], a value each (B,); 0 for equal ones, less is better."""

    def __init__(self, weights: Path, architecture: Architecture = ALEXNET) -> None:
        super().__init__()
        self.architecture = architecture
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
        self.convolutions = nn.ModuleList()
        for each in architecture.convolutions:
            weight, bias = (tensors[f"net.{each.name}.{part}"] for part in ("weight", "bias"))
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], each.kernel, padding=each.padding)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.convolutions.append(conv)
        self.judged = sum(each.judged for each in architecture.convolutions)
        for i in range(self.judged):
            self.register_buffer(f"linear{i}", tensors[f"lin{i}.model.1.weight"])
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", (taps[:, None] * taps / taps.sum() ** 2)[None, None])
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor, references: Tensor) -> Tensor:
        """See the class. Raises ValueError for sizes that differ or are too small."""
        if pictures.shape != references.shape:
            raise UserError(f"picture {tuple(pictures.shape)} and reference {tuple(references.shape)} differ in size")
        if min(pictures.shape[-2:]) < MIN_SIDE:
            raise UserError(f"ST-LPIPS needs at least {MIN_SIDE}x{MIN_SIDE} pixels, got {tuple(pictures.shape[-2:])}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and references.requires_grad):
            reference_maps = self._maps(references)
        total = torch.zeros(len(pictures), device=pictures.device)
        for i, (a, b) in enumerate(zip(self._maps(pictures), reference_maps, strict=True)):
            weighted = F.conv2d((_unit(a) - _unit(b)).square(), getattr(self, f"linear{i}"))
            total = total + weighted.float().mean(dim=(1, 2, 3))
        return total

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        """The judged layers' answers."""
        x, maps = (pictures.float() * 2 - 1 - self.shift) / self.scale, []
        x = x.contiguous(memory_format=torch.channels_last)
        for conv, each in zip(self.convolutions, self.architecture.convolutions, strict=True):
            if each.halved_before:
                x = self._halved(F.max_pool2d(x, self.architecture.pool, stride=1))
            x = conv(x)
            x = F.relu(self._halved(x) if each.halved_after else x)
            if each.judged:
                maps.append(x)
        return maps

    def _halved(self, x: Tensor) -> Tensor:
        """Blurred, then every second cell."""
        channels = x.shape[1]
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.blur.to(x.dtype).expand(channels, 1, 3, 3),
                        stride=2, groups=channels)


def _unit(x: Tensor) -> Tensor:
    """Each cell's channels as a vector of length 1."""
    return x / ((x.square().sum(1, keepdim=True) + SMALLEST_SQUARE).sqrt() + SMALLEST_NORM)
