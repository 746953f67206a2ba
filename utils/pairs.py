"""Training pairs: HR crops and what the degradation makes of them, with the class that each pair teaches."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ClassSampler = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # the same, with labels (B,)
Sampler = Callable[[int, torch.Generator], Tensor]  # (batch, generator) -> (B, 3, S, S) in [0, 1]
Degrader = Callable[[Tensor, torch.Generator], Tensor]  # HR (B, 3, S, S) -> LR at HR size, both in [0, 1]

HIGH_QUALITY, LOW_QUALITY = 0, 1


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
            raise ValueError(f"negative_share must be in [0, 1), got {negative_share}")
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
            raise ValueError(f"unconditional_share must be in [0, 1), got {unconditional_share}")
        self.sample, self.classes, self.unconditional_share = sample, classes, unconditional_share

    def draw(self, batch: int, generator: torch.Generator, device: torch.device) -> Pairs:
        """A batch on `device` without LR pictures; the unconditional class comes after all others."""
        target, labels = self.sample(batch, generator)
        lost = torch.rand(batch, generator=generator) < self.unconditional_share
        return Pairs(target.to(device) * 2 - 1, None, labels.masked_fill(lost, self.classes).to(device))

    def positives_only(self) -> ClassSource:
        """The same source with every class kept, for validation."""
        return ClassSource(self.sample, self.classes, 0.0)
