"""Generated samples that a training stage draws its batches from, slowly replaced by new ones.

Generating costs more than a step of training on what was generated, so each sample serves many times.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

LEVELS = 255


class SamplePool:
    """A ring of samples, each a row of every named tensor. It holds them as they are given, on the CPU."""

    def __init__(self, size: int) -> None:
        self.size, self.added = size, 0
        self.fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.added, self.size)

    def add(self, **samples: Tensor) -> None:
        """Store samples, tensors (M, ...) of the same M, the oldest making room."""
        count = len(next(iter(samples.values())))
        slots = (torch.arange(count) + self.added) % self.size
        for name, value in samples.items():
            if name not in self.fields:
                self.fields[name] = torch.empty(self.size, *value.shape[1:], dtype=value.dtype)
            self.fields[name][slots] = value.detach().cpu()
        self.added += count

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` random samples, by name."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        return {name: value[chosen] for name, value in self.fields.items()}

    def state_dict(self) -> dict[str, Any]:
        """All samples, and how many were ever added."""
        return {"added": self.added, "fields": {name: value[:len(self)] for name, value in self.fields.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`. Raises ValueError for the state of a pool of another size."""
        held = len(next(iter(state["fields"].values()), ()))
        if held != min(state["added"], self.size):
            raise UserError(f"the saved pool holds {held} samples, this one {self.size}: resume with the settings of "
                             "the run, or start over with --resume no")
        self.added, self.fields = 0, {}
        if held:
            self.add(**state["fields"])
        self.added = state["added"]


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as 8-bit levels."""
    return ((pictures + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).byte()


def from_bytes(levels: Tensor) -> Tensor:
    """8-bit levels as float32 pictures in [-1, 1]."""
    return levels.float() / (LEVELS / 2) - 1
