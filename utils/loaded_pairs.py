"""Training pairs from a `BatchLoader`: drawn ahead by worker processes, degraded on the training device."""
from __future__ import annotations

from typing import Any

import torch

from dataloader.loader import BatchLoader
from dataloader.order import Stream, generator_at

from .pairs import LOW_QUALITY, Degrader, Pairs

LEVELS = 255.0


class LoadedPairs:
    """In place of `PairSource` and `ClassSource`; like the loader's batches, the pairs follow from the seed and the
    data position alone."""

    def __init__(self, loader: BatchLoader, degrade: Degrader | None = None, group: int = 1,
                 negatives_are_lr: bool = False) -> None:
        """degrade: None for class-to-image. group: samples that are degraded together (`DegradationConfig.group`);
        ranks draw what a single one would where it divides their batch size. negatives_are_lr: the targets of the
        low-quality class are the degraded pictures, as in `PairSource` without pictures of low quality."""
        self.loader, self.degrade, self.group, self.negatives_are_lr = loader, degrade, group, negatives_are_lr

    def draw(self, batch: int, _: torch.Generator, device: torch.device) -> Pairs:
        """The next batch on `device`. Raises ValueError for another size than the loader's."""
        if batch != self.loader.batch_size:
            raise ValueError(f"the loader has batches of {self.loader.batch_size}, asked for {batch}")
        first = self.loader.first_sample
        pixels, labels = next(self.loader)
        target = pixels.to(device, non_blocking=True).float() / LEVELS
        labels = labels.to(device, non_blocking=True)
        if self.degrade is None:
            return Pairs(target * 2 - 1, None, labels)
        parts = [self.degrade(part, generator_at(self.loader.seed, Stream.DEGRADATION, first + i * self.group))
                 for i, part in enumerate(target.split(self.group))]
        lr = torch.cat(parts)
        if self.negatives_are_lr:
            target = torch.where((labels == LOW_QUALITY)[:, None, None, None], lr, target)
        return Pairs(target * 2 - 1, lr * 2 - 1, labels)

    def state_dict(self) -> dict[str, Any]:
        """The data position."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.loader.load_state_dict(state)
