"""Colour transfer from the LR picture to the restored one: AdaIN and wavelet (StableSR, section 3.4).

Pictures are (3, H, W) or (B, 3, H, W) in [0, 1]; both arguments have the same size.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VARIANCE_FLOOR = 1e-5
WAVELET_LEVELS = 5
WAVELET_REACH = 2 ** WAVELET_LEVELS - 1  # pixels that the blurs of all levels reach together
OUTER_TAP = 0.25  # of the three; the middle one has the rest


def adain_color_fix(target: Tensor, source: Tensor) -> Tensor:
    """`target` with each channel's mean and standard deviation of `source`."""
    def moments(image: Tensor) -> tuple[Tensor, Tensor]:
        deviation = (image.float().var(dim=(-2, -1), keepdim=True) + VARIANCE_FLOOR).sqrt()
        return image.float().mean(dim=(-2, -1), keepdim=True), deviation
    target_mean, target_deviation = moments(target)
    source_mean, source_deviation = moments(source)
    return ((target - target_mean) / target_deviation * source_deviation + source_mean).clamp(0, 1)


def low_frequencies(image: Tensor) -> Tensor:
    """What five à-trous levels of the 3-tap binomial blur leave of an image, its borders replicated."""
    blurred = image if image.ndim == 4 else image[None]
    for level in range(WAVELET_LEVELS):
        for axis in (-1, -2):
            blurred = _blur(blurred, axis, 2 ** level)
    return blurred if image.ndim == 4 else blurred[0]


def _blur(image: Tensor, axis: int, step: int) -> Tensor:
    """(1, 2, 1) / 4 with taps `step` pixels apart. Sums of slices: far faster than a grouped convolution."""
    length = image.shape[axis]
    padded = F.pad(image, (step, step, 0, 0) if axis == -1 else (0, 0, step, step), mode="replicate")
    before, middle, after = (padded.narrow(axis, start, length) for start in (0, step, 2 * step))
    return torch.add(before, after).mul_(OUTER_TAP).add_(middle, alpha=1 - 2 * OUTER_TAP)


def wavelet_color_fix(target: Tensor, source: Tensor) -> Tensor:
    """The high frequencies of `target` on the low frequencies of `source`."""
    target = target.float()
    return low_frequencies(source.float() - target).add_(target).clamp_(0, 1)  # the blur is linear: one is enough
