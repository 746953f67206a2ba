"""Adds up what the parts of a model or of a training step take: seconds, or anything else that can be read."""
from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class StageClock:
    """Adds up the readings of the calls it wraps, by stage."""

    def __init__(self, device: torch.device, read: Callable[[], float] = time.perf_counter) -> None:
        """read: what is taken before and after a call; the difference counts."""
        self.device, self.read = device, read
        self.sums: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, name: str, stage: Callable[..., str]) -> None:
        """Measure calls of `owner.name` (method, or function of a module); `stage` names them from the arguments."""
        from .machine import synchronize
        original = getattr(owner, name)

        def measured(*args, **kwargs):
            synchronize(self.device)
            start = self.read()
            result = original(*args, **kwargs)
            synchronize(self.device)
            self.sums[stage(*args)] += self.read() - start
            return result
        setattr(owner, name, measured)
