"""Learning rates over a run: a warm-up, then one of the published curves. Light enough for `--help`."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def _flat_then_linear(flat: float) -> Callable[[float, float], float]:
    """1 for the first `flat` of the way, then a straight line to the final value."""
    def curve(passed: float, final: float) -> float:
        if passed < flat:
            return 1.0
        return final + (1 - final) * (1 - passed) / (1 - flat)
    return curve


def _cosine(passed: float, final: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * passed))


def _exponential(passed: float, final: float, flat: float = 0.15) -> float:
    if passed < flat:
        return 1.0
    return final ** ((passed - flat) / (1 - flat))


CURVES: dict[str, Callable[[float, float], float]] = {
    "cos": _cosine,
    "lin": _flat_then_linear(0.15),
    "lin0": _flat_then_linear(0.3),
    "lin00": _flat_then_linear(0.0),
    "exp": _exponential,
}


def short_warmup(warmup_iters: int, max_iters: int) -> int:
    """The warm-up of a run that may be shorter than the warm-up itself."""
    return min(warmup_iters, max_iters // 2)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then one of CURVES (names as the published command line has them)."""

    name: str = "lin0"
    max_iters: int = 1000
    warmup_iters: int = 100
    warmup_start: float = 0.005  # of the peak rate
    final: float = 0.01  # of the peak rate

    def __post_init__(self) -> None:
        if self.name not in CURVES:
            raise ValueError(f"unknown schedule {self.name!r}: choose one of {', '.join(CURVES)}")
        if not 0 <= self.warmup_iters < self.max_iters:
            raise ValueError(f"warm-up of {self.warmup_iters} iterations must be shorter than "
                             f"the {self.max_iters} iterations of training")

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration (0-based) as a fraction of the peak."""
        if iteration < self.warmup_iters:
            return self.warmup_start + (1 - self.warmup_start) * iteration / self.warmup_iters
        passed = (iteration - self.warmup_iters) / max(self.max_iters - 1 - self.warmup_iters, 1)
        return CURVES[self.name](min(passed, 1.0), self.final)

    def weight_decay(self, iteration: int, start: float, end: float) -> float:
        """Weight decay of an iteration: half a cosine from `start` to `end`."""
        passed = min(iteration / max(self.max_iters - 1, 1), 1.0)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * passed))
