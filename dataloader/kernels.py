"""Blur kernels of the Real-ESRGAN degradation (Wang et al. 2021, section 3.2), one per sample, on tensors.

All kernels stand on one canvas and sum to 1; a kernel of a smaller size is zero outside it. They are computed where
their parameters lie.
"""
from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


@cache
def identity(canvas: int, device: torch.device) -> Tensor:
    """The kernel (canvas, canvas) that leaves a picture as it is."""
    kernel = torch.zeros(canvas, canvas)
    kernel[canvas // 2, canvas // 2] = 1
    return kernel.to(device)


def _canvas(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Column and row offsets (size, size) from the centre."""
    axis = torch.arange(size, dtype=torch.float32, device=device) - size // 2
    return axis[None, :].expand(size, size), axis[:, None].expand(size, size)


def _finish(values: Tensor, sizes: Tensor) -> Tensor:
    """Zero outside each kernel's own size, and sum to 1."""
    dx, dy = _canvas(values.shape[-1], values.device)
    reach = torch.maximum(dx.abs(), dy.abs())
    values = values * (reach <= (sizes // 2)[:, None, None])
    return values / values.sum((-2, -1), keepdim=True)


def gaussian_kernels(canvas: int, sizes: Tensor, sigma_x: Tensor, sigma_y: Tensor, rotation: Tensor, beta: Tensor,
                     plateau: Tensor) -> Tensor:
    """(B, canvas, canvas) kernels: exp(-q^β / 2), or 1 / (1 + q^β) where `plateau`, with q the squared distance in
    units of the standard deviations along the rotated axes. All arguments (B,); β = 1 is the plain Gaussian."""
    dx, dy = _canvas(canvas, sizes.device)
    cos, sin = rotation.cos()[:, None, None], rotation.sin()[:, None, None]
    along, across = cos * dx + sin * dy, -sin * dx + cos * dy
    q = (along / sigma_x[:, None, None]).square() + (across / sigma_y[:, None, None]).square()
    powered = q.pow(beta[:, None, None])
    values = torch.where(plateau[:, None, None], 1 / (1 + powered), torch.exp(-0.5 * powered))
    return _finish(values, sizes)


def sinc_kernels(canvas: int, sizes: Tensor, cutoff: Tensor) -> Tensor:
    """(B, canvas, canvas) circular low-pass kernels of the given cutoff frequencies (B,) in radians per pixel."""
    dx, dy = _canvas(canvas, sizes.device)
    radius = (dx.square() + dy.square()).sqrt()
    cutoff = cutoff[:, None, None]
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    values = torch.where(radius == 0, cutoff.square() / (4 * math.pi), ring)
    return _finish(values, sizes)


def filter_each(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter every image (B, 3, H, W) with its own kernel (B, k, k), k odd; borders are reflected."""
    pad = kernels.shape[-1] // 2
    mode = "reflect" if min(images.shape[-2:]) > pad else "replicate"
    padded = F.pad(images, (pad,) * 4, mode=mode)
    kernels = kernels.to(images, non_blocking=True)
    return by_fourier(padded, kernels) if images.is_cuda else by_convolution(padded, kernels)


def by_convolution(padded: Tensor, kernels: Tensor) -> Tensor:
    """One grouped convolution: what filtering means here, and on a CPU no slower up to some 300 pixels."""
    batch, channels, height, width = padded.shape
    weight = kernels.repeat_interleave(channels, dim=0).unsqueeze(1)
    filtered = F.conv2d(padded.reshape(1, batch * channels, height, width), weight, groups=batch * channels)
    return filtered.view(batch, channels, *filtered.shape[-2:])


def by_fourier(padded: Tensor, kernels: Tensor) -> Tensor:
    """The same to rounding, by products of spectra: a hundred times fewer operations for a kernel of 21 x 21."""
    height, width = (side - kernels.shape[-1] + 1 for side in padded.shape[-2:])
    size = [_smooth(side) for side in padded.shape[-2:]]  # at least as large: what wraps around is cut off
    product = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernels, s=size).conj()[:, None]
    return torch.fft.irfft2(product, s=size)[..., :height, :width]


@cache
def _smooth(length: int) -> int:
    """The next length without a prime factor above 5: transforms of others are slow."""
    rest = length
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return length if rest == 1 else _smooth(length + 1)
