"""Training pictures and pairs from a `BatchLoader`: drawn ahead by workers, degraded on the training device."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataloader.loader import BatchLoader
from dataloader.order import Stream, generator_at

from .pairs import LOW_QUALITY, ClassSampler, ClassSource, Pairs, PairSource, Sampler

LEVELS = 255.0


class Loaded:
    """What draws from a loader: its position is the data position of a run."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader

    def _next(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The next batch on `device`: pictures (B, 3, S, S) in [0, 1], classes (B,). Raises ValueError for another
        size than the loader's."""
        if batch != self.loader.batch_size:
            raise ValueError(f"the loader has batches of {self.loader.batch_size}, asked for {batch}")
        pixels, labels = next(self.loader)
        return pixels.to(device, non_blocking=True).float() / LEVELS, labels.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The data position."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.loader.load_state_dict(state)


class LoadedCrops(Loaded):
    """Draws as `CropSource` would, but ahead of time."""

    def draw(self, batch: int, _: torch.Generator, device: torch.device) -> Tensor:
        """The next pictures (B, 3, S, S) in [0, 1] on `device`."""
        return self._next(batch, device)[0]


class LoadedPairs(Loaded):
    """Draws as another source would, but ahead of time; like the loader's batches, the pairs follow from the seed and
    the data position alone."""

    def __init__(self, loader: BatchLoader, plain: PairSource | ClassSource, group: int = 1) -> None:
        """plain: the same without a loader: it degrades, and serves validation. group: samples that are degraded
        together (`DegradationConfig.group`); ranks draw what a single one would where it divides their batch size."""
        super().__init__(loader)
        self.plain, self.group = plain, group

    def draw(self, batch: int, _: torch.Generator, device: torch.device) -> Pairs:
        """The next batch on `device`."""
        first = self.loader.first_sample
        target, labels = self._next(batch, device)
        if isinstance(self.plain, ClassSource):
            return Pairs(target * 2 - 1, None, labels)
        lr = torch.cat([self.plain.degrade(part, self._generator(first + i * self.group))
                        for i, part in enumerate(target.split(self.group))])
        if self.plain.sample_negative is None:
            target = torch.where((labels == LOW_QUALITY)[:, None, None, None], lr, target)
        return Pairs(target * 2 - 1, lr * 2 - 1, labels)

    def _generator(self, position: int) -> torch.Generator:
        return generator_at(self.loader.seed, Stream.DEGRADATION, position)

    @property
    def sample(self) -> Sampler | ClassSampler:
        """Pictures of the same place on demand, for validation."""
        return self.plain.sample

    def positives_only(self) -> PairSource | ClassSource:
        """For validation: on demand, without negatives, with every class."""
        return self.plain.positives_only()
