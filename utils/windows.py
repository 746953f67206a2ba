"""Cutting a picture into overlapping model windows and putting the results together again."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_OVERLAP = 0.25  # of the window's side


def window_starts(length: int, window: int, overlap: float = MIN_OVERLAP) -> list[int]:
    """First pixels of the windows along one side, evenly spread, the last one flush with the border.

    Neighbours overlap by at least `overlap` of the window. Raises ValueError for sides shorter than the window.
    """
    if length < window:
        raise ValueError(f"a side of {length} pixels is shorter than the window of {window}: pad it first")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    step = max(int(window * (1 - overlap)), 1)
    count = math.ceil((length - window) / step) + 1
    if count == 1:
        return [0]
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def ramp_weight(window: int, margin: int) -> Tensor:
    """Symmetric weight (window,) along one side: a raised cosine over `margin` pixels at each end, 1 between.

    It is positive everywhere, so that a normalised sum exists wherever one window lies.
    """
    position = torch.arange(window, dtype=torch.float64) + 0.5
    distance = torch.minimum(position, window - position)
    rising = torch.sin(distance / max(margin, 1) * (math.pi / 2)).square()
    return torch.where(distance < margin, rising, torch.ones_like(rising)).float()


@dataclass(frozen=True)
class Window:
    """Place of a window: its row and column in the grid, and its first pixel."""

    row: int
    column: int
    top: int
    left: int


class WindowGrid:
    """All windows over a picture of a size, and their blending."""

    def __init__(self, height: int, width: int, window: int, overlap: float = MIN_OVERLAP) -> None:
        self.height, self.width, self.window = height, width, window
        self.tops = window_starts(height, window, overlap)
        self.lefts = window_starts(width, window, overlap)
        weight = ramp_weight(window, max(round(window * overlap), 1))
        self.weight = weight[:, None] * weight[None, :]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[Window]:
        for row, top in enumerate(self.tops):
            for column, left in enumerate(self.lefts):
                yield Window(row, column, top, left)

    def cut(self, picture: Tensor, place: Window) -> Tensor:
        """The window's part of a picture (C, H, W)."""
        return picture[:, place.top:place.top + self.window, place.left:place.left + self.window]


class Blend:
    """Weighted sum of windows; `result` divides by the sum of the weights."""

    def __init__(self, grid: WindowGrid, channels: int = 3) -> None:
        self.grid = grid
        self.total = torch.zeros(channels, grid.height, grid.width)
        self.weights = torch.zeros(grid.height, grid.width)

    def add(self, place: Window, values: Tensor) -> None:
        """Add a window's values (C, window, window)."""
        rows = slice(place.top, place.top + self.grid.window)
        columns = slice(place.left, place.left + self.grid.window)
        self.total[:, rows, columns] += values.float().cpu() * self.grid.weight
        self.weights[rows, columns] += self.grid.weight

    def result(self) -> Tensor:
        """The blended picture (C, H, W)."""
        return self.total / self.weights
