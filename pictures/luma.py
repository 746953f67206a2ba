"""Colour planes that metrics work on: 8-bit pictures as BT.601 luma in both ranges, or as YIQ.

Published metric values differ by which of these they used, so every metric names its own.
"""
from __future__ import annotations

import torch
from torch import Tensor

PEAK = 255.0
# BT.601 studio range: Y in 16..235 from R, G, B in [0, 1]
LUMA_WEIGHTS, LUMA_OFFSET = (65.481, 128.553, 24.966), 16.0
BLUE_RANGE, RED_RANGE = 1.772, 1.402  # of B - Y and R - Y, twice 1 - 0.114 and 1 - 0.299
YIQ_WEIGHTS = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # Zhang et al. 2011


def eight_bit(image: Tensor) -> Tensor:
    """RGB levels (..., 3, H, W) float64 in 0..255, whole numbers, of a picture in [0, 1]."""
    return (image.double().clamp(0, 1) * PEAK).round()


def luma(image: Tensor) -> Tensor:
    """Studio-range Y (..., H, W) float64 in 16..235 of RGB (..., 3, H, W) in [0, 1], of its 8-bit rounding."""
    return _weighted(eight_bit(image) / PEAK, LUMA_WEIGHTS) + LUMA_OFFSET


def full_range_luma(image: Tensor) -> Tensor:
    """Full-range Y (..., H, W) float64 in 0..255 of RGB (..., 3, H, W) in [0, 1], of its 8-bit rounding."""
    return _weighted(eight_bit(image), YIQ_WEIGHTS[0])


def smooth_luma(image: Tensor) -> Tensor:
    """Full-range Y (..., H, W) in 0..255 of RGB (..., 3, H, W) in [0, 1], not rounded: gradients go through."""
    return _weighted(image * PEAK, YIQ_WEIGHTS[0])


def smooth_chroma(image: Tensor) -> Tensor:
    """Cb and Cr (..., 2, H, W) in -1/2..1/2 of RGB (..., 3, H, W) in [0, 1] (BT.601), not rounded: gradients go
    through."""
    red, _, blue = image.unbind(-3)
    y = _weighted(image, YIQ_WEIGHTS[0])
    return torch.stack([(blue - y) / BLUE_RANGE, (red - y) / RED_RANGE], dim=-3)


def gray(image: Tensor) -> Tensor:
    """Full-range Y as whole numbers, as MATLAB's rgb2gray gives it."""
    return full_range_luma(image).round()


def yiq(image: Tensor) -> Tensor:
    """Y, I and Q planes (..., 3, H, W) float64 at the scale 0..255 of RGB (..., 3, H, W) in [0, 1]."""
    levels = eight_bit(image)
    return torch.stack([_weighted(levels, weights) for weights in YIQ_WEIGHTS], dim=-3)


def _weighted(planes: Tensor, weights: tuple[float, float, float]) -> Tensor:
    return (planes * planes.new_tensor(weights).view(3, 1, 1)).sum(-3)
