"""Overlapping model windows over a picture of any size, and the share that each has in every cell.

Lengths are in cells of whatever grid the caller works on: latent cells where windows are generated and merged, pixels
(`scaled`) where decoded windows are put together.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_OVERLAP = 0.25  # of the window's side
TINY_WEIGHT = 1e-6


def window_starts(length: int, window: int, overlap: float = MIN_OVERLAP) -> list[int]:
    """First cells of the windows along one side, evenly spread, the last one flush with the border.

    Neighbours overlap by at least `overlap` of the window. Raises ValueError for sides shorter than the window.
    """
    if length < window:
        raise ValueError(f"a side of {length} cells is shorter than the window of {window}: pad it first")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
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
