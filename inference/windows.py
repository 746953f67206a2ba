"""Overlapping model windows over a picture of any size: where they lie, what each sees, which noise it gets, and its
share in every cell.

Lengths are in cells of whatever grid the caller works on: latent cells where windows are generated and merged, pixels
(`scaled`) where decoded windows are put together.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import VARSRConfig
from models.varsr import RefinerNoise
from pictures.rgb import PictureSource, upsample_region
from utils.errors import UserError

MIN_OVERLAP = 0.25  # of the window's side
TINY_WEIGHT = 1e-6
DECODING_OVERLAP = 0.5  # of neighbouring decoded windows
DECODING_EDGE = 0.1  # share of a decoded window's side at each end that serves as context only


def window_starts(length: int, window: int, overlap: float = MIN_OVERLAP) -> list[int]:
    """First cells of the windows along one side, evenly spread, the last one flush with the border.

    Neighbours overlap by at least `overlap` of the window. Raises ValueError for sides shorter than the window.
    """
    if length < window:
        raise UserError(f"a side of {length} cells is shorter than the window of {window}: pad it first")
    if not 0 <= overlap < 1:
        raise UserError(f"overlap must be in [0, 1), got {overlap}")
    step = max(int(window * (1 - overlap)), 1)
    count = math.ceil((length - window) / step) + 1
    if count == 1:
        return [0]
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def ramp_weight(window: int, margin: int, edge: int = 0) -> Tensor:
    """Symmetric weight (window,), float64: 1, but rising as a raised cosine over `margin` cells at each end.

    edge: how many of the outermost cells count for (next to) nothing; the ramp then ends as much before the margin
    does, so that two windows that overlap by the margin still sum to one. No weight is zero: a normalised sum exists
    wherever one window lies.
    """
    position = torch.arange(window, dtype=torch.float64) + 0.5
    distance = torch.minimum(position, window - position)
    rise = ((distance - edge) / max(margin - 2 * edge, 1)).clamp(0, 1)
    return torch.sin(rise * (math.pi / 2)).square().clamp(min=TINY_WEIGHT)


class WindowAxis:
    """The windows along one side of a picture.

    starts: their first cells. shares: (count, window) float32, what each contributes to its cells; the shares of
    every cell sum to one, so that merging is a plain sum. edge: cells at a window's ends that serve as context only,
    where a neighbour can fill in.
    """

    def __init__(self, length: int, window: int, overlap: float = MIN_OVERLAP, edge: int = 0) -> None:
        self._place(length, window, window_starts(length, window, overlap), edge)

    def _place(self, length: int, window: int, starts: list[int], edge: int) -> None:
        self.length, self.window, self.starts, self.edge = length, window, starts, edge
        largest_step = max((b - a for a, b in zip(starts, starts[1:])), default=window)
        weight = ramp_weight(window, min(window - largest_step, window // 2), edge)
        total = torch.zeros(length, dtype=torch.float64)
        for start in starts:
            total[start:start + window] += weight
        self.shares = torch.stack([weight / total[start:start + window] for start in starts]).float()

    def scaled(self, factor: int) -> WindowAxis:
        """The same windows where each cell is `factor` cells long, with shares as smooth as the finer grid allows."""
        fine = object.__new__(WindowAxis)
        fine._place(self.length * factor, self.window * factor, [start * factor for start in self.starts],
                    self.edge * factor)
        return fine

    def reaching(self, first: int, last: int) -> range:
        """Indices of the windows that have cells in [first, last)."""
        inside = [i for i, start in enumerate(self.starts) if start < last and start + self.window > first]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Window:
    """Place of a window: its number in the grid (row-major), its row and column there, and its first cell."""

    index: int
    row: int
    column: int
    top: int
    left: int


class WindowGrid:
    """All windows over a picture of height x width cells."""

    def __init__(self, height: int, width: int, window: int, overlap: float = MIN_OVERLAP, edge: int = 0) -> None:
        self.rows, self.columns = (WindowAxis(length, window, overlap, edge) for length in (height, width))
        self.window = window

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Window]:
        return (window for row in range(len(self.rows)) for window in self.row(row))

    def row(self, row: int) -> list[Window]:
        """The windows of one row, from left to right."""
        return [Window(row * len(self.columns) + column, row, column, self.rows.starts[row], left)
                for column, left in enumerate(self.columns.starts)]


class LatentStore(Protocol):
    """Latents (c, N, N) float32, or codes (tokens,), by window number."""

    def __contains__(self, index: int) -> bool: ...

    def __getitem__(self, index: int) -> Tensor: ...

    def __setitem__(self, index: int, latent: Tensor) -> None: ...


class TiledPicture:
    """A result of `size` (height, width) pixels, covered by model windows on the latent grid.

    The grid may reach past the picture's right and bottom edge, by less than one cell, or up to one window where the
    picture is smaller; the guide repeats its edge pixels there. `decoding` is the grid of the windows that the merged
    latent is decoded in: denser, since a decoded window depends on its surroundings, most of all at its edges, and
    decoding costs a fraction of generating. `latents[side]`: the windows' latents after the scale
    of that side; the last one's are the finished ones. `codes`: where the windows' codes are kept, (tokens,) each, the
    scales behind each other; None: nowhere. `given`: codes of a window and which of them are not drawn anew, both
    (tokens,); None: all are drawn. `evidence`: how decided their tokens were, (2K, N, N) a window; None: it is not
    kept. `samples`: the finished latents of further results.
    """

    def __init__(self, source: PictureSource, size: tuple[int, int], config: VARSRConfig,
                 overlap: float = MIN_OVERLAP, latents: dict[int, LatentStore] | None = None) -> None:
        self.source, self.config = source, config
        self.height, self.width = size
        self.factor = config.vqvae.downsampling
        cells = [max(-(-side // self.factor), config.vqvae.side) for side in size]
        side = config.vqvae.side
        self.grid = WindowGrid(*cells, side, overlap)
        self.decoding = WindowGrid(*cells, side, DECODING_OVERLAP, round(DECODING_EDGE * side))
        self.latents = latents if latents is not None else {config.vqvae.side: {}}
        self.codes: LatentStore | None = None
        self.given: Callable[[Window], tuple[Tensor, Tensor]] | None = None
        self.evidence: LatentStore | None = None
        self.samples: list[LatentStore] = []

    @property
    def finished(self) -> LatentStore:
        """The windows' finished latents."""
        return self.latents[self.config.vqvae.side]

    def guide(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Part (3, height, width) of the bicubically enlarged LR picture in [0, 1]; edge pixels go on past edges."""
        inside = min(height, self.height - top), min(width, self.width - left)
        part = upsample_region(self.source, (self.height, self.width), top, left, *inside)
        return F.pad(part[None], (0, width - inside[1], 0, height - inside[0]), mode="replicate")[0]

    def window_guide(self, place: Window) -> Tensor:
        """What a window sees: (3, S, S)."""
        size = self.config.image_size
        return self.guide(place.top * self.factor, place.left * self.factor, size, size)


def place_seed(seed: int, *place: int) -> int:
    """A seed of its own for each place, the same in whichever batch and process it is used."""
    return zlib.crc32("/".join(map(str, (seed, *place))).encode())


def refiner_noise(config: VARSRConfig, seed: int, windows: list[Window], steps: int) -> RefinerNoise:
    """Refiner noise of a batch of windows, cut from one field over the whole picture.

    Overlapping windows get the same noise in the cells they share: their latents then agree in it, and merging does
    not average it away, which would leave the overlaps smoother than the rest.
    """
    side, channels = config.vqvae.side, config.vqvae.latent_channels
    noise = torch.stack([_field(seed, window.top, window.left, side, steps + 1, channels) for window in windows], dim=1)
    return RefinerNoise(noise[0], noise[1:])


def _field(seed: int, top: int, left: int, side: int, layers: int, channels: int) -> Tensor:
    """Cells [top, top + side) x [left, left + side) of the noise field: (layers, side * side, channels)."""
    def block(row: int, column: int) -> Tensor:
        generator = torch.Generator().manual_seed(place_seed(seed, row, column))
        return torch.randn(layers, side, side, channels, generator=generator)
    rows = range(top // side, (top + side - 1) // side + 1)
    columns = range(left // side, (left + side - 1) // side + 1)
    field = torch.cat([torch.cat([block(row, column) for column in columns], dim=2) for row in rows], dim=1)
    y, x = top % side, left % side
    return field[:, y:y + side, x:x + side].flatten(1, 2)
