"""The decoder's correction over a whole picture, tile by tile.

Decoded windows depend on all that they hold (norms, attention), so they overlap and are blended. The correction
(`models/fidelity.py`) is plain convolutions: after blending, every pixel is corrected once, and tiles only need some of
their surroundings. They lie on a grid of their own, counted from the picture's corner, so that it does not matter which
rows are asked for.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.varsr import VARSR

from .tiles import TiledPicture

Band = tuple[int, Tensor]  # first row, pixels (3, rows, W)
TILE = 256  # pixels; a multiple of every stem
# Pixels around a tile that it sees. Convolutions reach further, but no weight to speak of does (docs/large_images.md).
CONTEXT = 32


class Rows:
    """Rows of a picture by their numbers, from bands that come in order; what was passed over is forgotten."""

    def __init__(self, bands: Iterator[Band]) -> None:
        self.bands = bands
        self.start, self.held = next(bands)

    def take(self, first: int, last: int) -> Tensor:
        """Rows [first, last), none before those of the last call's `first`."""
        while self.start + self.held.shape[1] < last:
            _, rows = next(self.bands)
            passed = min(max(first - self.start, 0), self.held.shape[1])
            self.held, self.start = torch.cat([self.held[:, passed:], rows], dim=1), self.start + passed
        return self.held[:, first - self.start:last - self.start]


def needed_rows(height: int, first: int, last: int) -> tuple[int, int]:
    """Decoded rows that corrected rows [first, last) are made of, in a picture of `height` rows."""
    top, bottom = first // TILE * TILE, -(-last // TILE) * TILE
    return max(top - CONTEXT, 0), min(bottom + CONTEXT, height)


def corrected(model: VARSR, picture: TiledPicture, bands: Iterator[Band], first: int, last: int) -> Iterator[Band]:
    """Rows [first, last) in [0, 1], corrected, in bands from the top. bands: decoded ones, all of `needed_rows`."""
    rows = Rows(bands)
    for top in range(first // TILE * TILE, last, TILE):
        band = _corrected_band(model, picture, rows, top)
        inside = band[:, max(first - top, 0):last - top]
        yield max(top, first), inside


def _corrected_band(model: VARSR, picture: TiledPicture, rows: Rows, top: int) -> Tensor:
    """A row of tiles, (3, up to TILE, W)."""
    first, last = _seen(top, picture.height)
    decoded = rows.take(first, last)
    height = min(TILE, picture.height - top)
    parts = []
    for left in range(0, picture.width, TILE):
        start, end = _seen(left, picture.width)
        tile = _correct(model, decoded[:, :, start:end], picture.guide(first, start, last - first, end - start))
        parts.append(tile[:, top - first:top - first + height, left - start:left - start + TILE])
    return torch.cat(parts, dim=2)[:, :, :picture.width]


def _seen(start: int, length: int) -> tuple[int, int]:
    """What a tile that begins at `start` sees along a side."""
    return max(start - CONTEXT, 0), min(start + TILE + CONTEXT, length)


def _correct(model: VARSR, decoded: Tensor, guide: Tensor) -> Tensor:
    """A tile (3, h, w) of any size: sides that the stem does not divide go on with their last pixels."""
    stem = model.config.vqvae.stem
    height, width = decoded.shape[1:]
    grown = [F.pad(part[None], (0, -width % stem, 0, -height % stem), mode="replicate") for part in (decoded, guide)]
    return model.correct(*grown)[0, :, :height, :width].cpu()
