"""Blur kernels of the Real-ESRGAN degradation (Wang et al. 2021, section 3.2), one per sample, on tensors.

All kernels stand on one canvas and sum to 1; a kernel of a smaller size is zero outside it.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _canvas(size: int) -> tuple[Tensor, Tensor]:
    """Column and row offsets (size, size) from the centre."""
    axis = torch.arange(size, dtype=torch.float32) - size // 2
    return axis[None, :].expand(size, size), axis[:, None].expand(size, size)


def _finish(values: Tensor, sizes: Tensor) -> Tensor:
    """Zero outside each kernel's own size, and sum to 1."""
    dx, dy = _canvas(values.shape[-1])
    reach = torch.maximum(dx.abs(), dy.abs())
    values = values * (reach <= (sizes // 2)[:, None, None])
    return values / values.sum((-2, -1), keepdim=True)


def gaussian_kernels(canvas: int, sizes: Tensor, sigma_x: Tensor, sigma_y: Tensor, rotation: Tensor, beta: Tensor,
                     plateau: Tensor) -> Tensor:
    """(B, canvas, canvas) kernels: exp(-q^β / 2), or 1 / (1 + q^β) where `plateau`, with q the squared distance in
    units of the standard deviations along the rotated axes. All arguments (B,); β = 1 is the plain Gaussian."""
    dx, dy = _canvas(canvas)
    cos, sin = rotation.cos()[:, None, None], rotation.sin()[:, None, None]
    along, across = cos * dx + sin * dy, -sin * dx + cos * dy
    q = (along / sigma_x[:, None, None]).square() + (across / sigma_y[:, None, None]).square()
    powered = q.pow(beta[:, None, None])
    values = torch.where(plateau[:, None, None], 1 / (1 + powered), torch.exp(-0.5 * powered))
    return _finish(values, sizes)


def sinc_kernels(canvas: int, sizes: Tensor, cutoff: Tensor) -> Tensor:
    """(B, canvas, canvas) circular low-pass kernels of the given cutoff frequencies (B,) in radians per pixel."""
    dx, dy = _canvas(canvas)
    radius = (dx.square() + dy.square()).sqrt()
    cutoff = cutoff[:, None, None]
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    values = torch.where(radius == 0, cutoff.square() / (4 * math.pi), ring)
    return _finish(values, sizes)


def filter_each(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter every image (B, 3, H, W) with its own kernel (B, k, k); borders are reflected."""
    batch, channels, height, width = images.shape
    pad = kernels.shape[-1] // 2
    mode = "reflect" if min(height, width) > pad else "replicate"
    padded = F.pad(images, (pad,) * 4, mode=mode)
    weight = kernels.to(images, non_blocking=True).repeat_interleave(channels, dim=0).unsqueeze(1)
    filtered = F.conv2d(padded.reshape(1, batch * channels, *padded.shape[-2:]), weight, groups=batch * channels)
    return filtered.view(batch, channels, height, width)
