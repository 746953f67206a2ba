"""How long a run is, and learning rates over it: a warm-up, then one of the published curves.

A run's course goes from place 0 to place `length`. By iterations, a place is an iteration's number. By the clock it
follows the time that has passed, so that the learning rate has come down when the minutes are over, however fast the
machine is. Light enough for `--help`.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TIMED_LENGTH = 2000  # places of a run by the clock, which iteration counts of schedules (warm-ups) are measured in
TIMED_REPORTS = 8  # validations of a run by the clock
MINUTE = 60.0  # seconds
ENDING_SHARE = 0.03  # of the minutes that the end is thought to take before a validation was timed
ENDING_MARGIN = 1.5  # the last validation and what is saved after it, in validations with their states


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


def share_of(share: float, before: int, count: int) -> int:
    """How many of `count` samples after `before` others fall into a share, so that it is kept in the long run, however
    small batches are."""
    return math.floor(share * (before + count)) - math.floor(share * before)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then one of CURVES (names as the published command line has them), over a run's course."""

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

    def rate(self, place: float) -> float:
        """Learning rate at a place as a fraction of the peak."""
        if place < self.warmup_iters:
            return self.warmup_start + (1 - self.warmup_start) * place / self.warmup_iters
        passed = (place - self.warmup_iters) / max(self.max_iters - 1 - self.warmup_iters, 1)
        return CURVES[self.name](min(passed, 1.0), self.final)

    def weight_decay(self, place: float, start: float, end: float) -> float:
        """Weight decay at a place: half a cosine from `start` to `end`."""
        passed = min(place / max(self.max_iters - 1, 1), 1.0)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * passed))


class Course:
    """A number of iterations."""

    minutes_left: float | None = None

    def __init__(self, iterations: int, report_every: int, save_every: int) -> None:
        """report_every, save_every: iterations between validations and between saved states."""
        self.length, self.report_every, self.save_every = iterations, report_every, save_every

    def place(self, iteration: int) -> float:
        """Where the step of that number (0-based) lies; from `length` on there is none."""
        return float(iteration)

    def reports(self, done: int, before: float, after: float) -> bool:
        """Whether a validation is due after `done` steps, the last of which led from place `before` to `after`."""
        return done % self.report_every == 0

    def saves(self, done: int, before: float, after: float) -> bool:
        """Whether a state is due, likewise."""
        return done % self.save_every == 0

    def note_step(self) -> None:
        """A step is over."""

    def note_report(self, seconds: float) -> None:
        """A validation and what was saved after it took so long."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind what `state_dict` gave."""


class TimedCourse(Course):
    """Minutes, set-up and the end included. Without numbers of their own, validations come TIMED_REPORTS times, and
    states once a minute."""

    def __init__(self, minutes: float, report_every: int | None = None, save_every: int | None = None,
                 began: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """began: the clock when the minutes began to count, now by default."""
        super().__init__(TIMED_LENGTH, report_every, save_every)
        self.seconds, self.clock = minutes * MINUTE, clock
        self._began = clock() if began is None else began
        self._spent_before = self._trained_before = 0.0  # by earlier processes of the run
        self._stepping_since: float | None = None  # its first step loads and compiles: it counts as set-up
        self._ending = ENDING_SHARE * self.seconds
        self._states = max(round(minutes), 1)
        self._furthest = 0.0  # place: a better guess of the end must not lead back

    @property
    def spent(self) -> float:
        """Seconds of the run so far, all processes that were stopped included."""
        return self._spent_before + self.clock() - self._began

    @property
    def trained(self) -> float:
        """Those of them that it trained, from each process's second step on."""
        return self._trained_before + (0.0 if self._stepping_since is None else self.clock() - self._stepping_since)

    @property
    def minutes_left(self) -> float:
        """Until the run ends."""
        return max(self.seconds - self.spent, 0.0) / MINUTE

    def place(self, iteration: int) -> float:
        """Where the run is now: the share of the time for steps that is over. A run makes one step at least."""
        if self._stepping_since is None and not self._trained_before:
            return 0.0
        left, trained = max(self.seconds - self._ending - self.spent, 0.0), self.trained
        share = trained / (trained + left) if left else 1.0
        self._furthest = max(self._furthest, self.length * share)
        return self._furthest

    def reports(self, done: int, before: float, after: float) -> bool:
        return self._due(before, after, TIMED_REPORTS) if self.report_every is None else \
            super().reports(done, before, after)

    def saves(self, done: int, before: float, after: float) -> bool:
        return self._due(before, after, self._states) if self.save_every is None else super().saves(done, before, after)

    def _due(self, before: float, after: float, times: int) -> bool:
        """Whether one of the ends of `times` equal parts of the course lies between two places."""
        return int(before * times / self.length) < int(after * times / self.length)

    def note_step(self) -> None:
        if self._stepping_since is None:
            self._stepping_since = self.clock()

    def note_report(self, seconds: float) -> None:
        self._ending = ENDING_MARGIN * seconds

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far: a resumed run has those that are left."""
        return {"spent": self.spent, "trained": self.trained, "ending": self._ending, "furthest": self._furthest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spent_before, self._trained_before = state.get("spent", 0.0), state.get("trained", 0.0)
        self._ending, self._furthest = state.get("ending", self._ending), state.get("furthest", self._furthest)
