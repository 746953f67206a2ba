"""Training pairs: HR crops and what the degradation makes of them, with the class that each pair teaches."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

from .loader import BatchLoader
from .positions import Stream, generator_at

ClassSampler = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # the same, with labels (B,)
Sampler = Callable[[int, torch.Generator], Tensor]  # (batch, generator) -> (B, 3, S, S) in [0, 1]
Degrader = Callable[[Tensor, torch.Generator], Tensor]  # HR (B, 3, S, S) -> LR at HR size, both in [0, 1]

HIGH_QUALITY, LOW_QUALITY = 0, 1

LEVELS = 255.0


@dataclass
class Pairs:
    """A batch: pictures in [-1, 1] (no LR for class-to-image), labels (B,)."""

    target: Tensor
    lr: Tensor | None
    labels: Tensor


class DrawnOnDemand:
    """A source whose draws depend on the caller's generator alone: it has no data position to save."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class CropSource(DrawnOnDemand):
    """Draws pictures alone, for the tokenizer."""

    def __init__(self, sample: Sampler) -> None:
        self.sample = sample

    def draw(self, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """(B, 3, S, S) in [0, 1] on `device`."""
        return self.sample(batch, generator).to(device)


class PairSource(DrawnOnDemand):
    """Draws pairs; a share of them are negatives for image-based guidance (VARSR, section 3.3).

    Negatives come from a sampler of low-quality pictures (`trainset_neg`). Without one, the degraded picture is
    its own target: the low-quality class then means "leave it as it is", which is what guidance must push away from.
    """

    def __init__(self, sample: Sampler, degrade: Degrader, negative_share: float = 0.0,
                 sample_negative: Sampler | None = None) -> None:
        if not 0 <= negative_share < 1:
            raise UserError(f"negative_share must be in [0, 1), got {negative_share}")
        self.sample, self.degrade = sample, degrade
        self.negative_share, self.sample_negative = negative_share, sample_negative

    def draw(self, batch: int, generator: torch.Generator, device: torch.device) -> Pairs:
        """A batch on `device`; everything random comes from `generator`."""
        negative = torch.rand(batch, generator=generator) < self.negative_share
        target = self.sample(batch, generator)
        if self.sample_negative is not None and negative.any():
            target[negative] = self.sample_negative(int(negative.sum()), generator)
        target = target.to(device)
        lr = self.degrade(target, generator)
        if self.sample_negative is None:
            target = torch.where(negative.to(device)[:, None, None, None], lr, target)
        labels = torch.where(negative, LOW_QUALITY, HIGH_QUALITY)
        return Pairs(target * 2 - 1, lr * 2 - 1, labels.to(device))

    def positives_only(self) -> PairSource:
        """The same source without negatives, for validation."""
        return PairSource(self.sample, self.degrade)


class ClassSource(DrawnOnDemand):
    """Draws pictures of classes for class-to-image training; some lose their class, for guidance (VAR, section 3.3)."""

    def __init__(self, sample: ClassSampler, classes: int, unconditional_share: float = 0.1) -> None:
        if not 0 <= unconditional_share < 1:
            raise UserError(f"unconditional_share must be in [0, 1), got {unconditional_share}")
        self.sample, self.classes, self.unconditional_share = sample, classes, unconditional_share

    def draw(self, batch: int, generator: torch.Generator, device: torch.device) -> Pairs:
        """A batch on `device` without LR pictures; the unconditional class comes after all others."""
        target, labels = self.sample(batch, generator)
        lost = torch.rand(batch, generator=generator) < self.unconditional_share
        return Pairs(target.to(device) * 2 - 1, None, labels.masked_fill(lost, self.classes).to(device))

    def positives_only(self) -> ClassSource:
        """The same source with every class kept, for validation."""
        return ClassSource(self.sample, self.classes, 0.0)


class Loaded:
    """What draws from a loader: its position is the data position of a run."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader

    def _next(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The next batch on `device`: pictures (B, 3, S, S) in [0, 1], classes (B,). Raises ValueError for another
        size than the loader's."""
        if batch != self.loader.batch_size:
            raise UserError(f"the loader has batches of {self.loader.batch_size}, asked for {batch}")
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
