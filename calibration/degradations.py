"""What the crops of a calibration go through: as in training, and what pictures meet one at a time.

A quarter only reduced; a quarter reduced after a blur, or before noise, or before JPEG, or before WebP; half of them
degraded as in training, which does all of that at once: of a picture that is noisy and nothing else it tells little.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from dataloader.degradation import Degradation, DegradationConfig
from dataloader.jpeg import jpeg
from pictures.formats import vips
from pictures.rgb import LEVELS_8, TensorSource, reduce_region, to_pillow

KINDS = 4  # crops, after which it begins again
PERIOD = 4 * KINDS  # crops, after which each of what is alone has had its turn
LIGHT_SHARE = 0.3  # of the crops degraded as in training, those that are only slightly so
BLUR_SIGMA = (0.5, 4.0)  # pixels of the HR crop
NOISE_SIGMA = (2.0, 20.0)  # levels
QUALITY = (15.0, 95.0)  # of JPEG and WebP
BLUR_REACH = 3  # deviations
SEEDS = 1_000_003  # of one calibration's crops, more than any has


class CropDegradation:
    """HR crops (3, H, W) in [0, 1] to LR ones, rounded to 8 bits, by their number."""

    def __init__(self, scale: float, seed: int) -> None:
        self.scale, self.seed = scale, seed
        self.trained = Degradation(DegradationConfig.load(light_probability=LIGHT_SHARE, scale=round(scale)))

    def __call__(self, number: int, hr: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * SEEDS + number)
        kind, turn = number % KINDS, number // KINDS
        if kind > 1:
            return self.trained(hr[None], generator)[0]
        if not kind:
            return _rounded(self._reduced(hr))
        alone = self._blurred, self._noisy, self._jpeg, self._webp
        return _rounded(alone[turn % len(alone)](hr, generator))

    def _reduced(self, hr: Tensor) -> Tensor:
        size = tuple(round(side / self.scale) for side in hr.shape[1:])
        return reduce_region(TensorSource(hr), size, 0, 0, *size).clamp(0, 1)

    def _blurred(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        sigma = _between(BLUR_SIGMA, generator)
        side = 2 * round(BLUR_REACH * sigma) + 1
        return self._reduced(gaussian_blur(hr, [side] * 2, [sigma] * 2))

    def _noisy(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        lr = self._reduced(hr)
        sigma = _between(NOISE_SIGMA, generator)
        return lr + torch.randn(lr.shape, generator=generator) * sigma / LEVELS_8

    def _jpeg(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        return jpeg(self._reduced(hr)[None], torch.tensor([_between(QUALITY, generator)]))[0]

    def _webp(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        levels = np.asarray(to_pillow(self._reduced(hr)))
        data = vips().Image.new_from_array(levels).webpsave_buffer(Q=round(_between(QUALITY, generator)))
        again = vips().Image.webpload_buffer(data).numpy()
        return torch.from_numpy(again[:, :, :3].copy()).permute(2, 0, 1).float() / LEVELS_8


def _between(bounds: tuple[float, float], generator: torch.Generator) -> float:
    """Evenly distributed logarithms: half of something is as far from it as twice."""
    low, high = torch.tensor(bounds).log()
    return float((low + (high - low) * torch.rand((), generator=generator)).exp())


def _rounded(lr: Tensor) -> Tensor:
    return lr.clamp(0, 1).mul(LEVELS_8).round().div(LEVELS_8)
