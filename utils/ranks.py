"""Several processes on one job (torchrun): who does what, and agreement between them."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # one rank may wait for another through the whole of a huge picture


class Ranks:
    """This process's number among `world`; with one process every method is trivial."""

    def __init__(self, rank: int = 0, world: int = 1, backend: str = "gloo") -> None:
        self.rank, self.world = rank, world
        if world > 1:
            dist.init_process_group(backend, rank=rank, world_size=world, timeout=PATIENCE)

    @classmethod
    def from_environment(cls, backend: str = "gloo") -> Ranks:
        """As torchrun says, else a single process."""
        return cls(int(os.environ.get("RANK", 0)), started_processes(), backend)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs and writes files."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1:
            dist.destroy_process_group()

    def strided(self, items: Sequence[T]) -> list[T]:
        """This rank's part of independent items: every world-th one."""
        return list(items[self.rank::self.world])

    def contiguous(self, items: Sequence[T]) -> list[T]:
        """This rank's part of neighbouring items, one unbroken stretch."""
        return list(items[len(items) * self.rank // self.world:len(items) * (self.rank + 1) // self.world])

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank; also a meeting point."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over the ranks of numbers that every rank has under the same names."""
        if self.world == 1:
            return dict(values)
        import torch
        numbers = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.world).tolist(), strict=True))

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Put means over the ranks in place of tensors of one type that every rank has in the same order."""
        if self.world == 1:
            return
        import torch
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_(self, tensor: Tensor) -> None:
        """Put the sum over the ranks in its place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def share_(self, tensor: Tensor) -> None:
        """Put the main rank's values in its place."""
        if self.world > 1:
            dist.broadcast(tensor, 0)

    def together(self, step: Callable[[], T]) -> T:
        """Run a step on every rank. Where it fails on one it fails on all: with the rank's own error, or its text."""
        failure: Exception | None = None
        try:
            value = step()
        except Exception as error:  # whatever it is, the other ranks must not be left waiting
            failure = error
        reasons = self.gather(None if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        if any(reasons):
            raise UserError(next(reason for reason in reasons if reason))
        return value


def started_processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_restart() -> bool:
    """Whether torchrun has started this group again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
