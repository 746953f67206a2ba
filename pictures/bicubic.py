"""Bicubic enlargement of any part of a picture, equal to that part of the whole picture's enlargement."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MAX_SCALE = 16.0
REACH = 4  # LR pixels beside a region that its bicubic samples can touch, with room to spare


class PictureSource(Protocol):
    """Where LR pixels come from: a `Picture`, or a `TensorSource`."""

    height: int
    width: int

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Pixels (3, height, width), float32 in [0, 1]."""


class TensorSource:
    """An LR picture (3, h, w) in [0, 1] in memory."""

    def __init__(self, picture: Tensor) -> None:
        self.picture = picture
        self.height, self.width = picture.shape[-2:]

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Pixels (3, height, width), float32 on the CPU."""
        return self.picture[:, top:top + height, left:left + width].float().cpu()


def _span(first: int, count: int, ratio: float, length: int) -> tuple[int, int, float, float]:
    """Source pixels [low, high) behind `count` results from `first` on, and the exact place in them."""
    low = max(math.floor(first * ratio) - REACH, 0)
    high = min(math.ceil((first + count) * ratio) + REACH, length)
    return low, high, max(first * ratio - low, 0.0), min((first + count) * ratio - low, high - low)


def upsample_region(source: PictureSource, size: tuple[int, int], top: int, left: int, height: int,
                    width: int) -> Tensor:
    """Part (3, height, width) at (top, left) of `source` resized to `size` (H, W) by Pillow's bicubic, in [0, 1]."""
    y0, y1, box_top, box_bottom = _span(top, height, source.height / size[0], source.height)
    x0, x1, box_left, box_right = _span(left, width, source.width / size[1], source.width)
    crop = source.region(y0, x0, y1 - y0, x1 - x0).numpy()
    box = (box_left, box_top, box_right, box_bottom)
    channels = [np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), Image.BICUBIC, box))
                for channel in crop]
    return torch.from_numpy(np.stack(channels)).clamp_(0, 1)


def upsample(lr: Tensor, scale: float) -> Tensor:
    """Bicubic resize of (3, h, w) by `scale`: (3, round(h·scale), round(w·scale)) in [0, 1], at least one pixel."""
    height, width = result_size(TensorSource(lr), scale)
    return upsample_region(TensorSource(lr), (height, width), 0, 0, height, width)


def result_size(source: PictureSource, scale: float) -> tuple[int, int]:
    """(height, width) of a picture enlarged by `scale`, at least one pixel a side."""
    return max(round(source.height * scale), 1), max(round(source.width * scale), 1)


@dataclass(frozen=True)
class SizeRequest:
    """How large results shall be: by `scale`, or by given sides (the missing one keeps the aspect)."""

    scale: float
    width: int | None = None
    height: int | None = None
    longest: int | None = None

    def size(self, source: PictureSource) -> tuple[int, int]:
        """(height, width) of a picture's result. Raises ValueError where that shrinks it or enlarges it too far."""
        if self.longest is not None:
            size = result_size(source, self.longest / max(source.height, source.width))
        elif self.width is None and self.height is None:
            return result_size(source, self.scale)
        else:
            by_width = None if self.width is None else self.width / source.width
            by_height = None if self.height is None else self.height / source.height
            size = (self.height or result_size(source, by_width)[0], self.width or result_size(source, by_height)[1])
        factors = size[0] / source.height, size[1] / source.width
        if min(factors) < 1 or max(factors) > MAX_SCALE:
            raise ValueError(f"{source.width}x{source.height} to {size[1]}x{size[0]} is a scale of "
                             f"{min(factors):.3g} to {max(factors):.3g}: must be from 1 to {MAX_SCALE:g}")
        return size


def enlarged(source: PictureSource, size: tuple[int, int]) -> Tensor:
    """The LR picture, bicubically at a result's size, in [0, 1]: what the result is compared with."""
    return upsample_region(source, size, 0, 0, *size)
