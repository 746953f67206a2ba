"""How long calls take, and what the parts of a model or of a training step take of it."""
from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MISSING = object()
HOST = "(host)"


@dataclass(frozen=True)
class Times:
    """Seconds of a first call, which also pays for what is prepared once, and of the following ones."""

    first: float
    following: list[float]

    @property
    def steady(self) -> float:
        """Median of the following calls."""
        return median(self.following)


def timed_calls(call: Callable[[], object], device: torch.device, seconds: float, least: int = 3,
                warm_up: int = 1) -> Times:
    """Time calls, each until the device is done with it, for some seconds and `least` times at least; the first one and
    `warm_up` further ones apart."""
    from .machine import synchronize

    def timed() -> float:
        start = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - start
    synchronize(device)
    first = timed()
    for _ in range(warm_up):
        timed()
    following: list[float] = []
    while len(following) < least or sum(following) < seconds:
        following.append(timed())
    return Times(first, following)


class StageClock:
    """Adds up the readings of the calls it wraps, by stage: seconds, or anything else that can be read.

    As a context manager it leaves everything as it was.
    """

    def __init__(self, device: torch.device, read: Callable[[], float] = time.perf_counter) -> None:
        """read: what is taken before and after a call; the difference counts."""
        self.device, self.read = device, read
        self.sums: dict[str, float] = defaultdict(float)
        self._wrapped: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> StageClock:
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in reversed(self._wrapped):
            if original is MISSING:  # a method: the class still has it
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._wrapped.clear()

    def wrap(self, owner: Any, name: str, stage: Callable[..., str]) -> None:
        """Measure calls of `owner.name` (method, or function of a module); `stage` names them from the arguments. Of
        those "(host)" the host's time alone: threads make them while the device computes."""
        from .machine import synchronize
        original = getattr(owner, name)
        self._wrapped.append((owner, name, vars(owner).get(name, MISSING)))

        def measured(*args, **kwargs):
            part = stage(*args)
            waits = not part.endswith(HOST)
            if waits:
                synchronize(self.device)
            start = self.read()
            result = original(*args, **kwargs)
            if waits:
                synchronize(self.device)
            self.sums[part] += self.read() - start
            return result
        setattr(owner, name, measured)
