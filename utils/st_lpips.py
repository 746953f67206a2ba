"""ST-LPIPS: a perceptual distance trained on human judgements that a shift by a pixel hardly changes (Ghildyal & Liu,
"Shift-tolerant Perceptual Similarity Metric", ECCV 2022).

As LPIPS (Zhang et al., 2018) on AlexNet, with blurred sub-sampling in place of strides. It is not LPIPS, and its
values are not LPIPS values. The weights are those of the `stlpips-pytorch` package, whose code is not used.
"""
from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE, PACKAGED_FILE = "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"
REMEDY = "`pip install -r requirements-perceptual.txt`"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1], as LPIPS has them
SMALLEST_NORM = 1e-10
MIN_SIDE = 32  # pixels; below, nothing is left at the last layers

# Convolutions: the file's name, channels in and out, kernel, padding.
CONVOLUTIONS = (("slice1.0", 3, 64, 11, 2), ("slice2.5", 64, 192, 5, 2), ("slice3.9", 192, 384, 3, 1),
                ("slice4.11", 384, 256, 3, 1), ("slice5.13", 256, 256, 3, 1))
POOLED_BEFORE = (1, 2)  # convolutions with a maximum and a blurred sub-sampling before them


def find_weights() -> Path | None:
    """The file of the installed package, if there is one."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations)), PACKAGED_FILE)
    return path if path.is_file() else None


class STLPIPS(nn.Module):
    """Distance of pictures (B, 3, H, W) in [0, 1], a value each (B,); 0 for equal ones, less is better."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, out, kernel, padding=padding) for _, channels, out, kernel, padding in CONVOLUTIONS)
        for conv, (name, *_) in zip(self.convolutions, CONVOLUTIONS):
            conv.load_state_dict({part: tensors[f"net.{name}.{part}"] for part in ("weight", "bias")})
        for i in range(len(CONVOLUTIONS)):
            self.register_buffer(f"linear{i}", tensors[f"lin{i}.model.1.weight"])
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", (taps[:, None] * taps / taps.sum() ** 2)[None, None])
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor, references: Tensor) -> Tensor:
        """See the class. Raises ValueError for sizes that differ or are too small."""
        if pictures.shape != references.shape:
            raise ValueError(f"picture {tuple(pictures.shape)} and reference {tuple(references.shape)} differ in size")
        if min(pictures.shape[-2:]) < MIN_SIDE:
            raise ValueError(f"ST-LPIPS needs at least {MIN_SIDE}x{MIN_SIDE} pixels, got {tuple(pictures.shape[-2:])}")
        total = torch.zeros(len(pictures), device=pictures.device)
        for i, (a, b) in enumerate(zip(self._maps(pictures), self._maps(references), strict=True)):
            weighted = F.conv2d((_unit(a) - _unit(b)).square(), getattr(self, f"linear{i}"))
            total = total + weighted.mean(dim=(1, 2, 3))
        return total

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        """The five layers' answers."""
        x, maps = (pictures.float() * 2 - 1 - self.shift) / self.scale, []
        for i, conv in enumerate(self.convolutions):
            if i in POOLED_BEFORE:
                x = self._halved(F.max_pool2d(x, 3, stride=1))
            x = conv(x)
            x = F.relu(self._halved(x) if i == 0 else x)
            maps.append(x)
        return maps

    def _halved(self, x: Tensor) -> Tensor:
        """Blurred, then every second cell."""
        channels = x.shape[1]
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.blur.expand(channels, 1, 3, 3), stride=2,
                        groups=channels)


def _unit(x: Tensor) -> Tensor:
    """Each cell's channels as a vector of length 1."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + SMALLEST_NORM)
