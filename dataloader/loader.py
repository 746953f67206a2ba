"""Batches of samples, drawn ahead of time by worker processes if there are any.

Batch i is the same whatever the number of workers, and two ranks with batches of b together have what one rank has
with 2b: a sample depends on the seed and its position alone (`order.py`). So the data position of a run is one number.
"""
from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from utils.errors import UserError

from .entries import Failures
from .photo_crops import NEGATIVE
from .positions import Stream, random_at

# Not by a plain fork: a child inherits locks of libvips and of the GPU's driver that nobody will open.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

News = list[tuple[str, str]]


class SampleSource(Protocol):
    """`PhotoCrops`, `PublishedCrops`, `ClassCrops`, `WithNegatives`."""

    failures: Failures

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """(S, S, 3) uint8 and a class, decided by the two numbers."""


class WithNegatives:
    """Samples of which a share teaches the low-quality class (`NEGATIVE`), for image-based guidance."""

    def __init__(self, positives: SampleSource, share: float, negatives: SampleSource | None = None) -> None:
        """negatives: where their pictures come from; without it they are positives with the other label, whose
        degraded pictures are to be their targets. Raises ValueError for a share outside [0, 1)."""
        if not 0 <= share < 1:
            raise UserError(f"the share of negatives must be in [0, 1), got {share}")
        self.positives, self.share, self.negatives = positives, share, negatives
        self.failures = positives.failures
        if negatives is not None:  # one count for both
            self.failures.reasons.update(negatives.failures.reasons)
            negatives.failures = self.failures

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """(S, S, 3) uint8 and the class."""
        if random_at(seed, Stream.NEGATIVE, position).random() >= self.share:
            return self.positives.sample(position, seed)
        return (self.negatives or self.positives).sample(position, seed)[0], NEGATIVE


class WithLostClasses:
    """Samples of classes, a share of which gets the unconditional class, for guidance (VAR, section 3.3)."""

    def __init__(self, source: SampleSource, classes: int, share: float = 0.1) -> None:
        """classes: how many there are; the unconditional one comes behind them. Raises ValueError as the above."""
        if not 0 <= share < 1:
            raise UserError(f"the share without a class must be in [0, 1), got {share}")
        self.source, self.classes, self.share, self.failures = source, classes, share, source.failures

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """(S, S, 3) uint8 and the class."""
        pixels, label = self.source.sample(position, seed)
        lost = random_at(seed, Stream.UNCONDITIONAL, position).random() < self.share
        return pixels, self.classes if lost else label


class _Batches(Dataset):
    """Item i is batch i of a rank: pixels (B, S, S, 3) uint8, classes (B,), and what was skipped on the way."""

    def __init__(self, source: SampleSource, batch_size: int, seed: int, rank: int, ranks: int) -> None:
        self.source, self.batch_size, self.seed, self.rank, self.ranks = source, batch_size, seed, rank, ranks

    def first_sample(self, batch: int) -> int:
        """Position of a batch's first sample in the row that all ranks share."""
        return (batch * self.ranks + self.rank) * self.batch_size

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor, News]:
        first = self.first_sample(batch)
        samples = [self.source.sample(first + i, self.seed) for i in range(self.batch_size)]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in samples]))
        return pixels, torch.tensor([label for _, label in samples]), self.source.failures.take_news()


def _be_quiet(_: int) -> None:
    """In a worker: skipped pictures are named by the main process."""
    get_worker_info().dataset.source.failures.announce = False


class BatchLoader:
    """An endless iterator of (pictures (B, 3, S, S) uint8, classes (B,)) that continues at any position."""

    def __init__(self, source: SampleSource, batch_size: int, *, seed: int = 0, rank: int = 0, ranks: int = 1,
                 workers: int = 0, pin_memory: bool = False) -> None:
        """batch_size: of one rank. workers: processes that draw ahead; with 0 a batch is drawn when asked for.
        pin_memory: for a GPU, which then copies a batch while it computes. Raises ValueError for bad numbers."""
        if batch_size < 1 or workers < 0 or not 0 <= rank < ranks:
            raise UserError(f"batch_size must be positive, workers not negative and rank below ranks, got "
                             f"{batch_size}, {workers}, {rank} of {ranks}")
        self.failures = source.failures
        self.position = 0
        self.batch_size, self.seed, self.workers, self.pin_memory = batch_size, seed, workers, pin_memory
        self._batches = _Batches(source, batch_size, seed, rank, ranks)
        self._iterator: Iterator | None = None

    @property
    def first_sample(self) -> int:
        """Position of the next batch's first sample in the row that all ranks share."""
        return self._batches.first_sample(self.position)

    def __iter__(self) -> BatchLoader:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """The batch at `position`, which moves on. Raises what the source raises when nothing can be read."""
        if self._iterator is None:
            self._iterator = self._start()
        pixels, labels, news = next(self._iterator)
        self.failures.update(news)
        self.position += 1
        return pixels.permute(0, 3, 1, 2), labels

    def _start(self) -> Iterator:
        context = multiprocessing.get_context(START_METHOD) if self.workers else None
        own = torch.Generator()  # else a number is drawn from the global generator, and again after each resume
        return iter(DataLoader(self._batches, batch_size=None, sampler=count(self.position), generator=own,
                               num_workers=self.workers, worker_init_fn=_be_quiet, multiprocessing_context=context,
                               pin_memory=self.pin_memory))

    def state_dict(self) -> dict[str, Any]:
        """The data position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batch that was the last one when the state was taken."""
        self.position = state["position"]
        self.close()

    def close(self) -> None:
        """End the worker processes; a following batch starts new ones."""
        self._iterator = None
