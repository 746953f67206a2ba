"""The embedded model and parts of the sample pictures, for tests that need a trained model."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.settings import EMBEDDED
from models.varsr import VARSR

MODEL = EMBEDDED[True]
SAMPLE = Path(__file__).resolve().parents[1] / "testset" / "sample"


def embedded_model(device: torch.device, dtype: torch.dtype = torch.float32) -> VARSR:
    return VARSR.from_pretrained(MODEL, device=device, dtype=dtype)


def sample_lr(name: str, left: int = 0, top: int = 0, width: int = 128, height: int = 128) -> Tensor:
    """A part of an LR picture: (3, height, width) in [0, 1]."""
    picture = Image.open(SAMPLE / "LR" / f"{name}.png").convert("RGB").crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def decibels(a: Tensor, b: Tensor) -> float:
    """PSNR of pictures in [0, 1]."""
    return float(-10 * torch.log10((a.cpu().float() - b.cpu().float()).square().mean()))


def levels_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many of 255 levels the values of two pictures in [0, 1] differ by."""
    first, second = ((each.cpu().float().clamp(0, 1) * 255).round() for each in (a, b))
    return (first - second).abs()
