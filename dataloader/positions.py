"""What belongs to a position of the endless row of training samples: its random numbers and its picture.

All of it follows from the seed and the position, so that a run resumes from a number, and any share of the row can be
drawn anywhere: by a worker process ahead of time, or by one of several ranks.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import accumulate

import numpy as np
import torch

WORD = 2 ** 64


class Stream(IntEnum):
    """What random numbers are for; each purpose has its own at every position."""

    ORDER, CROP, FLIP, CLASS, NEGATIVE, DEGRADATION, UNCONDITIONAL, REFINER, SCALES = range(9)


def random_at(seed: int, stream: Stream, position: int) -> np.random.Generator:
    """NumPy's generator for a purpose and a position from 0 on."""
    return np.random.default_rng([seed % WORD, stream, position])


def generator_at(seed: int, stream: Stream, position: int) -> torch.Generator:
    """The same as a CPU generator of torch."""
    mixed = np.random.SeedSequence([seed % WORD, stream, position]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def running_sum(weights: Iterable[float]) -> np.ndarray:
    """Where the intervals end that `pick` chooses from."""
    return np.array(list(accumulate(weights)))


def pick(ends: np.ndarray, share: float) -> int:
    """Index of the interval, given by the running sum of their lengths, that `share` in [0, 1) of the sum lies in."""
    return int(pick_each(ends, np.array(share)))


def pick_each(ends: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """As `pick`, for many shares at once."""
    return np.minimum(np.searchsorted(ends, shares * ends[-1], side="right"), len(ends) - 1)


class PictureOrder:
    """Which picture each position shows.

    With equal weights every picture once an epoch, in an order of its own each time; with others, by chance.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.count = len(weights)
        self._ends, self._by_chance = running_sum(weights), len(set(weights)) > 1
        self._epoch: tuple[tuple[int, int], np.ndarray] | None = None

    def index(self, position: int, seed: int) -> int:
        """In 0..count - 1, for a position from 0 on."""
        if self._by_chance:
            return pick(self._ends, random_at(seed, Stream.ORDER, position).random())
        epoch, place = divmod(position, self.count)
        if self._epoch is None or self._epoch[0] != (seed, epoch):
            self._epoch = (seed, epoch), random_at(seed, Stream.ORDER, epoch).permutation(self.count)
        return int(self._epoch[1][place])
