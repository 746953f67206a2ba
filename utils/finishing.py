"""The decoder's correction (`models/fidelity.py`) over rows of a picture.

Decoded windows depend on all that they hold (norms, attention), so they overlap and are blended. The correction is a
few convolutions: made after blending, every pixel is corrected once instead of in every window that holds it.
"""
from __future__ import annotations

import torch
from torch import Tensor

from models.fidelity import PixelCorrection
from models.varsr import VARSR

from .tiles import TiledPicture

REACH = PixelCorrection.REACH
PART = 512  # columns corrected at a time, so that memory does not grow with the picture


def correct_rows(model: VARSR, picture: TiledPicture, rows: Tensor, top: int) -> Tensor:
    """Decoded rows (3, h, W) from `top` on, corrected, in [0, 1]. The first and last `REACH` of them are only right
    at the picture's edges."""
    height, width = rows.shape[1:]
    parts = []
    for left in range(0, width, PART):
        first, last = max(left - REACH, 0), min(left + PART + REACH, width)
        guide = picture.guide(top, first, height, last - first)
        part = model.correct(rows[None, :, :, first:last], guide[None])[0].cpu()
        parts.append(part[:, :, left - first:left - first + PART])
    return torch.cat(parts, dim=2)
