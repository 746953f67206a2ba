"""Full-reference metrics (PSNR, SSIM, MS-SSIM, GMSD) and the planes that they work on. No weights are needed.

A metric takes planes (C, H, W) or one plane (H, W) of levels 0..255 of a picture and of its reference; which planes
those are (luma in both ranges, RGB, YIQ) is the protocol's business (`evaluation/protocols.py`), for published values
differ by it. `psnr_y` and `ssim_y` are what the paper reports.
"""
from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pictures.rgb import BT601
from utils.errors import UserError

PEAK = 255.0
# BT.601 studio range: Y in 16..235 from R, G, B in [0, 1]
LUMA_WEIGHTS, LUMA_OFFSET = (65.481, 128.553, 24.966), 16.0
BLUE_RANGE, RED_RANGE = 1.772, 1.402  # of B - Y and R - Y, twice 1 - 0.114 and 1 - 0.299
YIQ_WEIGHTS = (BT601, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # Zhang et al. 2011
SSIM_SIDE, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first
MS_SSIM_SIDE = (SSIM_SIDE - 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1  # shorter sides leave no window at the last scale
GMSD_CONSTANT = 170.0  # Xue et al. 2014
GMSD_SIDE = 4
DETAIL_SIDE, DETAIL_SIGMA = 11, 1.5  # Gaussian that high_frequency takes away


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
    return (planes * _column(weights, planes.dtype, planes.device)).sum(-3)


@cache
def _column(weights: tuple[float, float, float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights (3, 1, 1) on a device: copied there once, because the host waits for a copy of its numbers to a GPU."""
    with torch.inference_mode(False):  # losses use it too
        return torch.tensor(weights, dtype=dtype, device=device).view(3, 1, 1)


def require_comparable(image: Tensor, reference: Tensor, side: int = 1, metric: str = "this metric") -> None:
    """Raise ValueError unless both have one size, of at least `side` pixels each way."""
    if image.shape != reference.shape:
        raise UserError(f"picture {_size(image)} and reference {_size(reference)} differ in size")
    if min(image.shape[-2:]) < side:
        raise UserError(f"{metric} needs at least {side}x{side} pixels, got {_size(image)}")


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all planes. Infinite for equal pictures."""
    require_comparable(image, reference)
    error = (image - reference).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(PEAK ** 2 / error)


def ssim(image: Tensor, reference: Tensor, floor: float = -1.0) -> float:
    """Structural similarity with an 11x11 Gaussian window, over the positions where it fits; mean of the planes.

    floor: smallest value of the contrast and structure factor; pyiqa takes 0, Wang et al. and BasicSR none.
    Raises ValueError for pictures smaller than the window.
    """
    require_comparable(image, reference, SSIM_SIDE, "SSIM")
    luminance, contrast = _ssim_maps(_batch(image), _batch(reference))
    return (luminance * contrast.clamp(min=floor)).mean().item()


def mean_ssim(planes: Tensor, references: Tensor) -> Tensor:
    """SSIM of planes (..., H, W), their mean as a tensor with gradients: to train on (Zhao et al. 2017)."""
    luminance, contrast = _ssim_maps(*(x.reshape(-1, 1, *x.shape[-2:]) for x in (planes, references)))
    return (luminance * contrast).mean()


def ms_ssim(image: Tensor, reference: Tensor) -> float:
    """SSIM over five scales, each half the one before; mean of the planes.

    As in pyiqa the factors are at least 0 (a negative mean has no real power) and odd sides are padded with zeros.
    Raises ValueError where the last scale is smaller than the window.
    """
    require_comparable(image, reference, MS_SSIM_SIDE, "MS-SSIM")
    a, b = _batch(image), _batch(reference)
    product = a.new_ones(len(a))
    for i, weight in enumerate(MS_SSIM_WEIGHTS):
        if i > 0:
            odd = [side % 2 for side in a.shape[-2:]]
            a, b = (F.avg_pool2d(plane, 2, padding=odd) for plane in (a, b))
        luminance, contrast = _ssim_maps(a, b)
        contrast = contrast.clamp(min=0)
        last = i == len(MS_SSIM_WEIGHTS) - 1
        product = product * (luminance * contrast if last else contrast).mean(dim=(1, 2, 3)) ** weight
    return product.mean().item()


def gmsd(image: Tensor, reference: Tensor) -> float:
    """Deviation of the gradient magnitudes' similarity on one plane (H, W) at half size; 0 for equal pictures."""
    require_comparable(image, reference, GMSD_SIDE, "GMSD")
    a, b = (_prewitt_magnitude(F.avg_pool2d(_batch(plane), 2)) for plane in (image, reference))
    similarity = (2 * a * b + GMSD_CONSTANT) / (a.square() + b.square() + GMSD_CONSTANT)
    return similarity.std().item()


def psnr_y(image: Tensor, reference: Tensor) -> float:
    """PSNR in dB on studio-range luma; pictures (3, H, W) in [0, 1]."""
    return psnr(luma(image), luma(reference))


def ssim_y(image: Tensor, reference: Tensor) -> float:
    """SSIM on studio-range luma; pictures (3, H, W) in [0, 1]."""
    return ssim(luma(image), luma(reference))


def high_frequency(planes: Tensor) -> float:
    """Mean distance in levels of planes (C, H, W) from their Gaussian blur (sigma 1.5), where the 11x11 window fits:
    how much fine detail a picture shows. Raises ValueError for pictures smaller than the window."""
    require_comparable(planes, planes, DETAIL_SIDE, "the high-frequency energy")
    planes, border = _batch(planes), DETAIL_SIDE // 2
    inner = planes[..., border:-border, border:-border]
    return (inner - smooth(planes, gaussian_taps(DETAIL_SIDE, DETAIL_SIGMA, planes))).abs().mean().item()


def gaussian_taps(side: int, sigma: float, like: Tensor) -> Tensor:
    """Normalised samples (side,) of a Gaussian, of `like`'s type and device."""
    offsets = torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2
    taps = torch.exp(-offsets.square() / (2 * sigma ** 2))
    return taps / taps.sum()


def smooth(planes: Tensor, taps: Tensor) -> Tensor:
    """Separable filter of planes (B, 1, H, W) where it fits."""
    return F.conv2d(F.conv2d(planes, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))


def _batch(planes: Tensor) -> Tensor:
    """(H, W) or (C, H, W) as (C, 1, H, W) float64."""
    return planes.double().reshape(-1, 1, *planes.shape[-2:])


def _ssim_maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM's luminance factor, and its contrast and structure factor, of planes (C, 1, H, W)."""
    taps = gaussian_taps(SSIM_SIDE, SSIM_SIGMA, a)
    mean_a, mean_b = smooth(a, taps), smooth(b, taps)
    var_a, var_b = smooth(a * a, taps) - mean_a ** 2, smooth(b * b, taps) - mean_b ** 2
    covariance = smooth(a * b, taps) - mean_a * mean_b
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a ** 2 + mean_b ** 2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def _prewitt_magnitude(planes: Tensor) -> Tensor:
    """Gradient magnitude of (B, 1, H, W), zeros around it."""
    across = planes.new_tensor([1, 0, -1]).expand(3, 3) / 3
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(planes, kernels, padding=1).square().sum(1).sqrt()
