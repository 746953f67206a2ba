"""Training batches: samples by their positions in one endless row, and the pairs that the degradation makes of them.

Batch i is the same whatever the number of workers, and two ranks with batches of b together have what one rank has
with 2b: a sample depends on the seed and its position alone (`positions.py`). So the data position of a run is one
number.
"""
from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from models.config import LOW_QUALITY
from utils.errors import UserError

from .entries import Failures
from .positions import Stream, generator_at, random_at

# Not by a plain fork: a child inherits locks of libvips and of the GPU's driver that nobody will open.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
LEVELS = 255.0

News = list[tuple[str, str]]
Degrader = Callable[[Tensor, torch.Generator], Tensor]  # HR (B, 3, S, S) -> LR at HR size, both in [0, 1]


class SampleSource(Protocol):
    """`PhotoCrops`, `CentreCrops`, `ClassCrops`, `WithNegatives`, `WithLostClasses`."""

    failures: Failures

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """(S, S, 3) uint8 and a class, decided by the two numbers."""


class WithNegatives:
    """Samples of which a share teaches the low-quality class, for image-based guidance (VARSR, section 3.3)."""

    def __init__(self, positives: SampleSource, share: float, negatives: SampleSource | None = None) -> None:
        """negatives: where their pictures come from; without it they are positives with the other label, whose
        degraded pictures are to be their targets. Raises ValueError for a share outside [0, 1)."""
        self.positives, self.share, self.negatives = positives, _share(share), negatives
        self.failures = positives.failures
        if negatives is not None:  # one count for both
            self.failures.reasons.update(negatives.failures.reasons)
            negatives.failures = self.failures

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """(S, S, 3) uint8 and the class."""
        if not self._is_negative(position, seed):
            return self.positives.sample(position, seed)
        return (self.negatives or self.positives).sample(position, seed)[0], LOW_QUALITY

    def batch(self, positions: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        """The samples of several positions, of sources that hold them on a device (`resident.py`): (B, S, S, 3) uint8
        there, and the classes (B,)."""
        pixels, labels = self.positives.batch(positions, seed)
        negative = torch.tensor([self._is_negative(position, seed) for position in positions])
        if self.negatives is not None:
            here = negative.to(pixels.device, non_blocking=True)[:, None, None, None]
            pixels = torch.where(here, self.negatives.batch(positions, seed)[0], pixels)
        return pixels, torch.where(negative, LOW_QUALITY, labels)

    def _is_negative(self, position: int, seed: int) -> bool:
        return random_at(seed, Stream.NEGATIVE, position).random() < self.share


class WithLostClasses:
    """Samples of classes, a share of which gets the unconditional class, for guidance (VAR, section 3.3)."""

    def __init__(self, source: SampleSource, classes: int, share: float = 0.1) -> None:
        """classes: how many there are; the unconditional one comes behind them. Raises ValueError as the above."""
        self.source, self.classes, self.share, self.failures = source, classes, _share(share), source.failures

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """(S, S, 3) uint8 and the class."""
        pixels, label = self.source.sample(position, seed)
        lost = random_at(seed, Stream.UNCONDITIONAL, position).random() < self.share
        return pixels, self.classes if lost else label


def _share(share: float) -> float:
    if not 0 <= share < 1:
        raise UserError(f"a share of samples must be in [0, 1), got {share}")
    return share


def drawn(source: SampleSource, count: int, seed: int) -> Tensor:
    """The first `count` pictures of a seed's row, (M, 3, S, S) float32 in [0, 1]: for validation."""
    pixels = np.stack([source.sample(position, seed)[0] for position in range(count)])
    return rearrange(torch.from_numpy(pixels), "m h w c -> m c h w").contiguous().float().div_(LEVELS)


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


def _follow(_: int) -> None:
    """In a worker: the main process names skipped pictures, and hears Ctrl-C, which a terminal sends to all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    def samples(self) -> int:
        """Of a batch, all ranks' together."""
        return self.batch_size * self._batches.ranks

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
        return rearrange(pixels, "b h w c -> b c h w"), labels

    def _start(self) -> Iterator:
        context = multiprocessing.get_context(START_METHOD) if self.workers else None
        own = torch.Generator()  # else a number is drawn from the global generator, and again after each resume
        return iter(DataLoader(self._batches, batch_size=None, sampler=count(self.position), generator=own,
                               num_workers=self.workers, worker_init_fn=_follow, multiprocessing_context=context,
                               pin_memory=self.pin_memory))

    def state_dict(self, ahead: int = 0) -> dict[str, Any]:
        """The data position in samples of all ranks. ahead: batches that were drawn and not used."""
        return {"samples": (self.position - ahead) * self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last sample when the state was taken, whatever the size of batches and the number of
        ranks were: at the first batch that has none of them."""
        if "samples" in state:
            self.position = -(-state["samples"] // self.samples)
        else:  # as once saved
            self.position = state["position"]
        self.close()

    def close(self) -> None:
        """End the worker processes; a following batch starts new ones."""
        self._iterator = None


@dataclass
class Pairs:
    """A batch: pictures in [-1, 1] (no LR for class-to-image), labels (B,)."""

    target: Tensor
    lr: Tensor | None
    labels: Tensor


class CropSource:
    """Draws pictures alone, for the tokenizer. Its position is the data position of a run."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader
        self._prepared: Any = None

    def draw(self, device: torch.device) -> Any:
        """The next batch on `device`: pictures (B, 3, S, S) in [0, 1], or `Pairs`."""
        self.prepare(device)
        batch, self._prepared = self._prepared, None
        return batch

    def draw_ahead(self, device: torch.device) -> None:
        """While a GPU is busy with a step: name it the work of the next batch, so that it need not wait for the host
        to do so afterwards. A CPU has no such time."""
        if device.type == "cuda":
            self.prepare(device)

    def prepare(self, device: torch.device) -> None:
        """Draw what `draw` will give next."""
        if self._prepared is None:
            self._prepared = self._draw(device)

    def _draw(self, device: torch.device) -> Any:
        return self._next(device)[0]

    def _next(self, device: torch.device) -> tuple[Tensor, Tensor]:
        pixels, labels = next(self.loader)
        return pixels.to(device, non_blocking=True).float() / LEVELS, labels.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The data position: that of the next batch which `draw` gives."""
        return self.loader.state_dict(ahead=int(self._prepared is not None))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.loader.load_state_dict(state)
        self._prepared = None


class ClassSource(CropSource):
    """Draws pictures of classes, for class-to-image training: `Pairs` without LR pictures."""

    def _draw(self, device: torch.device) -> Pairs:
        target, labels = self._next(device)
        return Pairs(target * 2 - 1, None, labels)


class PairSource(CropSource):
    """Draws pictures and degrades them on the training device: `Pairs`."""

    def __init__(self, loader: BatchLoader, degrade: Degrader, group: int = 1, negatives_are_degraded: bool = True
                 ) -> None:
        """group: samples that are degraded together (`DegradationConfig.group`); ranks draw what a single one would
        where it divides their batch size. negatives_are_degraded: a picture of the low-quality class is its own
        target, degraded: the class then means "leave it as it is", which is what guidance must push away from."""
        super().__init__(loader)
        self.degrade, self.group, self.negatives_are_degraded = degrade, group, negatives_are_degraded

    def _draw(self, device: torch.device) -> Pairs:
        first = self.loader.first_sample
        target, labels = self._next(device)
        lr = torch.cat([self.degrade(part, generator_at(self.loader.seed, Stream.DEGRADATION, first + i * self.group))
                        for i, part in enumerate(target.split(self.group))])
        if self.negatives_are_degraded:
            target = torch.where((labels == LOW_QUALITY)[:, None, None, None], lr, target)
        return Pairs(target * 2 - 1, lr * 2 - 1, labels)
