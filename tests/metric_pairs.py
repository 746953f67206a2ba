"""Ten pairs of pictures, the same everywhere: waves, edges and texture, and ten ways to damage them."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

SIZES = ((192, 200), (181, 177), (208, 184), (400, 392), (176, 256))  # height, width


def _scene(random: RandomState, height: int, width: int) -> np.ndarray:
    """A picture (H, W, 3) in [0, 1] of gradients, discs, bars and fine grain."""
    y, x = np.mgrid[:height, :width] / 64
    image = np.empty((height, width, 3))
    for channel in range(3):
        a, b, phase = random.uniform(0.3, 2, 3)
        image[..., channel] = 0.5 + 0.25 * np.sin(a * x + b * y + phase)
    for _ in range(12):
        cy, cx, radius = random.uniform(0, height / 64), random.uniform(0, width / 64), random.uniform(0.1, 0.7)
        image[np.hypot(y - cy, x - cx) < radius] = random.uniform(0, 1, 3)
    bars = np.sin(40 * x + 8 * y) > 0
    image[bars & (x < 1) & (y > 1)] *= 0.6
    return image + 0.02 * random.standard_normal(image.shape)


def _blur(image: np.ndarray, reach: int) -> np.ndarray:
    for axis in (0, 1):
        image = sum(np.roll(image, shift, axis) for shift in range(-reach, reach + 1)) / (2 * reach + 1)
    return image


def _blocks(image: np.ndarray, side: int) -> np.ndarray:
    small = image[::side, ::side]
    return small.repeat(side, 0).repeat(side, 1)[:image.shape[0], :image.shape[1]]


DAMAGES: tuple[Callable[[np.ndarray, RandomState], np.ndarray], ...] = (
    lambda image, random: image + 0.03 * random.standard_normal(image.shape),
    lambda image, random: _blur(image, 1),
    lambda image, random: _blur(image, 3),
    lambda image, random: _blocks(image, 4),
    lambda image, random: image ** 1.4,
    lambda image, random: image[..., ::-1],
    lambda image, random: np.round(image * 6) / 6,
    lambda image, random: 0.8 * image + 0.05,
    lambda image, random: np.roll(image, 2, 1),
    lambda image, random: _blur(image, 2) + 0.06 * random.standard_normal(image.shape[:2])[..., None],
)


def pair(index: int) -> tuple[Tensor, Tensor]:
    """The damaged picture and its reference, (3, H, W) float32 in [0, 1] at 8-bit levels."""
    random = RandomState(index)
    clean = _scene(random, *SIZES[index % len(SIZES)]).clip(0, 1)
    damaged = DAMAGES[index](clean, random).clip(0, 1)
    return tuple(torch.from_numpy(np.round(image * 255).transpose(2, 0, 1) / 255).float()
                 for image in (damaged, clean))
