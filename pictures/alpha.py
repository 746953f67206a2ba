"""Colour under transparent pixels, filled from the visible ones, so that enlarging draws no fringe around a shape.

The fill is a pyramid (pull-push, after Gortler et al., The Lumigraph, 1996): averages of the visible colours go down,
and every hole takes the colour of the finest level that knows one. Time is linear in the pixels.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 512  # rows that are float at a time at full size; even


def bleed(color: np.ndarray, alpha: np.ndarray) -> None:
    """Replace, in place, what `color` (h, w, c) holds where `alpha` (h, w) is 0; both uint8 or uint16.

    A picture without any visible pixel stays as it is.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return
    means, weights = _first_level(color, alpha)
    fill = _filled(means, weights)
    for top in range(0, len(color), BAND):
        rows = slice(top, min(top + BAND, len(color)))
        band = _enlarged(fill, rows.start, rows.stop, color.shape[1]).round().permute(1, 2, 0).numpy()
        np.copyto(color[rows], band.astype(color.dtype), where=hidden[rows, :, None])


def _first_level(color: np.ndarray, alpha: np.ndarray) -> tuple[Tensor, Tensor]:
    """Means (c, h/2, w/2) of the visible colours and their weights (1, h/2, w/2), by bands."""
    levels = []
    for top in range(0, len(color), BAND):
        rows = slice(top, top + BAND)
        weight = torch.from_numpy(alpha[rows].astype(np.float32))[None] / np.iinfo(alpha.dtype).max
        levels.append(_halved(torch.from_numpy(color[rows].astype(np.float32)).permute(2, 0, 1), weight))
    return torch.cat([means for means, _ in levels], dim=1), torch.cat([weights for _, weights in levels], dim=1)


def _halved(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The next level of the pyramid; sides are rounded up."""
    pad = (0, means.shape[2] % 2, 0, means.shape[1] % 2)
    total = F.avg_pool2d(F.pad(means * weights, pad), 2)
    weights = F.avg_pool2d(F.pad(weights, pad), 2)
    return torch.where(weights > 0, total / weights.clamp_min(1e-12), 0), weights


def _filled(means: Tensor, weights: Tensor) -> Tensor:
    """A level without holes: those of it are filled from the next, coarser one."""
    if (weights > 0).all() or max(means.shape[1:]) == 1:
        return means
    coarse = _filled(*_halved(means, weights))
    return torch.where(weights > 0, means, _enlarged(coarse, 0, means.shape[1], means.shape[2]))


def _enlarged(coarse: Tensor, top: int, bottom: int, width: int) -> Tensor:
    """Rows `top` (even) to `bottom` of a level (c, h, w) enlarged twofold, bilinear: (c, bottom - top, width)."""
    first, last = max(top // 2 - 1, 0), min((bottom + 1) // 2 + 1, coarse.shape[1])
    double = F.interpolate(coarse[None, :, first:last], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return double[:, top - 2 * first:bottom - 2 * first, :width]
