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
TAPS = (0.25, 0.5, 0.25)


def adain_color_fix(target: Tensor, source: Tensor) -> Tensor:
    """`target` with each channel's mean and standard deviation of `source`."""
    def moments(image: Tensor) -> tuple[Tensor, Tensor]:
        deviation = (image.float().var(dim=(-2, -1), keepdim=True) + VARIANCE_FLOOR).sqrt()
        return image.float().mean(dim=(-2, -1), keepdim=True), deviation
    target_mean, target_deviation = moments(target)
    source_mean, source_deviation = moments(source)
    return ((target - target_mean) / target_deviation * source_deviation + source_mean).clamp(0, 1)


def low_frequencies(image: Tensor) -> Tensor:
    """What five à-trous levels of the 3-tap binomial blur leave of an image."""
    batched = image if image.ndim == 4 else image[None]
    channels = batched.shape[1]
    taps = torch.tensor(TAPS, device=image.device)
    for level in range(WAVELET_LEVELS):
        step = 2 ** level
        # separable, with the borders replicated for any size
        for axis in ((1, 3), (3, 1)):
            kernel = taps.view(1, 1, *axis).expand(channels, 1, *axis)
            pad = (step, step, 0, 0) if axis == (1, 3) else (0, 0, step, step)
            batched = F.conv2d(F.pad(batched, pad, mode="replicate"), kernel, dilation=step, groups=channels)
    return batched if image.ndim == 4 else batched[0]


def wavelet_color_fix(target: Tensor, source: Tensor) -> Tensor:
    """The high frequencies of `target` on the low frequencies of `source`."""
    target = target.float()
    return (target - low_frequencies(target) + low_frequencies(source.float())).clamp(0, 1)

