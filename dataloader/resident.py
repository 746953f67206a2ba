"""Random crops of photographs that lie in a device's memory, cut there a batch at a time.

A GPU trains a small model faster than a host reads, cuts and sends crops for it. The photographs are sent once (3
bytes a pixel, all levels together 4); of a batch the host only draws the places.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import HIGH_QUALITY
from models.sampling import to_device
from pictures.rgb import BT601
from utils.errors import UserError

from .pairs import BatchLoader, News
from .photo_crops import COARSE_BLOCK, DETAIL_BLOCK, FINE_BLOCK, LEVELS, MAX_DRAWS, PhotoCrops
from .positions import Stream, generator_at, pick_each

CHANNELS, NUMBERS = 3, 6  # of a pixel; random ones of a draw
GIGABYTE = 1e9


class ResidentCrops:
    """The crops of a `PhotoCrops` by their positions, whose photographs it holds on `device`.

    Every sample is that of the `PhotoCrops`, but for those whose detail lies so near a limit that rounding decides.
    """

    def __init__(self, crops: PhotoCrops, device: torch.device) -> None:
        """Raises UserError where the device has no room for them, OSError where their cache cannot be read."""
        self.crops, self.device, self.failures = crops, device, crops.failures
        levels = [level for group in crops.levels for level in group]
        sizes = np.array([level.height * level.width for level in levels])
        starts = np.cumsum(sizes) - sizes
        self.pixels = self._reserved(int(sizes.sum()))
        for level, start, size in zip(levels, starts, sizes, strict=True):
            self.pixels[start:start + size] = torch.from_numpy(np.load(level.file)).view(-1, CHANNELS)
        # Of each level: where its photographs start, their heights and widths.
        table = np.stack([starts, [level.height for level in levels], [level.width for level in levels]], axis=1)
        self._tables = np.split(table, np.cumsum([len(group) for group in crops.levels])[:-1])
        self._luma = torch.tensor(BT601, device=device) / LEVELS

    def _reserved(self, pixels: int) -> Tensor:
        try:
            return torch.empty(pixels, CHANNELS, dtype=torch.uint8, device=self.device)
        except RuntimeError as error:
            raise UserError(f"the photographs take {pixels * CHANNELS / GIGABYTE:.1f} GB, more than {self.device} has "
                            "free: leave out --data_on_device or train on fewer") from error

    def __len__(self) -> int:
        return len(self.crops)

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """As `PhotoCrops.sample`, on the host."""
        return self.crops.sample(position, seed)

    def batch(self, positions: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        """The crops of several positions, (B, S, S, 3) uint8 on the device, and their classes (B,) on the host."""
        places, flat, turns = self._draws(positions, seed)
        batch, draws = flat.shape
        candidates = self._cut(places.flatten(0, 1)).unflatten(0, (batch, draws))
        takes = flat | self._has_detail(candidates)
        takes[:, -1] = True
        first = takes.int().argmax(1)  # the first that is good enough
        rows = torch.arange(batch, device=self.device)
        pixels = self._cut(places[rows, first], turns[rows, first])
        return pixels, torch.full((batch,), HIGH_QUALITY)

    def _draws(self, positions: Sequence[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """On the device, for each position's MAX_DRAWS tries: places (B, M, 4), which hold the photograph's start and
        width, top and left; whether it may be flat (B, M); its symmetry (B, M)."""
        numbers = torch.stack([torch.rand(MAX_DRAWS, NUMBERS, generator=generator_at(seed, Stream.CROP, position),
                                          dtype=torch.float64) for position in positions])
        level, photo, top, left, flat, turn = np.moveaxis(numbers.numpy(), -1, 0)
        which = pick_each(self.crops.level_ends, level)
        start, height, width = (np.empty(which.shape, dtype=np.int64) for _ in range(3))
        for i, table in enumerate(self._tables):
            chosen = which == i
            rows = table[pick_each(self.crops.photo_ends[i], photo[chosen])]
            start[chosen], height[chosen], width[chosen] = rows.T
        room = 1 - self.crops.crop_size
        places = np.stack([start, width, top * (height + room), left * (width + room)], axis=-1).astype(np.int64)
        turns = (turn * self.crops.symmetries).astype(np.int64)
        on_host = places, flat < self.crops.flat_probability, turns
        return tuple(to_device(torch.from_numpy(values), self.device) for values in on_host)

    def _cut(self, places: Tensor, turns: Tensor | None = None) -> Tensor:
        """Crops (M, S, S, 3) uint8 at places (M, 4) in one of 8 symmetries (M,): see `photo_crops`."""
        axis = torch.arange(self.crops.crop_size, device=self.device)
        row, column = axis[None, :, None], axis[None, None, :]
        if turns is not None:
            mirrored, flipped, transposed = ((turns & bit).bool()[:, None, None] for bit in (1, 2, 4))
            row, column = torch.where(transposed, column, row), torch.where(transposed, row, column)
            row = torch.where(flipped, len(axis) - 1 - row, row)
            column = torch.where(mirrored, len(axis) - 1 - column, column)
        start, width, top, left = (each[:, None, None] for each in places.unbind(1))
        return self.pixels[start + (top + row) * width + left + column]

    def _has_detail(self, candidates: Tensor) -> Tensor:
        """Whether crops (B, M, S, S, 3) uint8 are worth training on, (B, M): `PhotoCrops`' measures."""
        luma = (candidates.flatten(0, 1).float() * self._luma).sum(-1)[:, None]  # (B M, 1, S, S)
        detail, fine, coarse = (_local_detail(luma, block) for block in (DETAIL_BLOCK, FINE_BLOCK, COARSE_BLOCK))
        sharpness = torch.where(coarse > 0, fine / coarse, 0.0)
        good = (detail >= self.crops.min_detail) & (sharpness >= self.crops.min_sharpness)
        return good.unflatten(0, candidates.shape[:2])


def _local_detail(luma: Tensor, block: int) -> Tensor:
    """`photo_crops.local_detail` of luma (M, 1, H, W) in [0, 1]: (M,)."""
    height, width = (side - side % block for side in luma.shape[-2:])
    luma = luma[..., :height, :width]
    if not luma.numel():
        return luma.new_zeros(len(luma))
    means = F.avg_pool2d(luma, block)
    return (luma.square().mean((1, 2, 3)) - means.square().mean((1, 2, 3))).clamp(min=0).sqrt()


class ResidentLoader(BatchLoader):
    """The same batches of a source that can `batch` (`ResidentCrops`, or `WithNegatives` of them): on its device."""

    def _start(self) -> Iterator:
        return map(self._batch, count(self.position))

    def _batch(self, batch: int) -> tuple[Tensor, Tensor, News]:
        first = self._batches.first_sample(batch)
        pixels, labels = self._batches.source.batch(range(first, first + self.batch_size), self.seed)
        return pixels, labels, []
