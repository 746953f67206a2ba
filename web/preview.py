"""What a picture looks like while its windows are made: a small copy that they are put into one by one."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.windows import TiledPicture, Window
from models.varsr import VARSR
from pictures.rgb import upsample_region

PREVIEW_SIDE = 768  # pixels: what a page shows
SCALE_PIXELS = 2 ** 20  # of results whose windows are decoded after every scale; larger ones after the last
VIEW_SIDE = 2048  # of the finished picture in the page; the file has them all


def shrunk(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) made to fit `longest` pixels a side, never enlarged."""
    factor = min(1.0, longest / max(size))
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def fitted(picture: Tensor, longest: int = VIEW_SIDE) -> Tensor:
    """A picture (3, h, w) shrunk to fit `longest` pixels a side."""
    size = shrunk(tuple(picture.shape[1:]), longest)
    return picture if size == tuple(picture.shape[1:]) else F.interpolate(picture[None], size, mode="area")[0]


class Preview:
    """A small copy of a picture in the making: bicubic first, then windows as they come.

    picture: (3, h, w) in [0, 1]. affords_scales: decoding windows after every scale does not cost too much.
    """

    def __init__(self, model: VARSR, tiled: TiledPicture) -> None:
        self.model, self.tiled = model, tiled
        size = shrunk((tiled.height, tiled.width), PREVIEW_SIDE)
        self.factor = max(size) / max(tiled.height, tiled.width)
        self.picture = upsample_region(tiled.source, size, 0, 0, *size)
        self.affords_scales = tiled.height * tiled.width <= SCALE_PIXELS

    def show(self, windows: Sequence[Window], latents: Sequence[Tensor] | Tensor) -> Tensor:
        """Put windows in by their latents (c, N, N) as they are; a copy of the picture then."""
        latents = torch.stack(tuple(latents)).to(self.model.device)
        guides = torch.stack([self.tiled.window_guide(window) for window in windows])
        for window, pixels in zip(windows, self.model.decode(latents, guides).float().cpu(), strict=True):
            self._paste(window, pixels)
        return self.picture.clone()

    def _paste(self, window: Window, pixels: Tensor) -> None:
        top, left = window.top * self.tiled.factor, window.left * self.tiled.factor
        pixels = pixels[:, :self.tiled.height - top, :self.tiled.width - left]
        first, start = round(top * self.factor), round(left * self.factor)
        last = min(round((top + pixels.shape[1]) * self.factor), self.picture.shape[1])
        end = min(round((left + pixels.shape[2]) * self.factor), self.picture.shape[2])
        if last > first and end > start:
            self.picture[:, first:last, start:end] = F.interpolate(pixels[None], (last - first, end - start),
                                                                   mode="area")[0]
