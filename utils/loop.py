"""The training loop that every stage shares: log, checkpoint, resume, stop on request."""
from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .progress import Throughput
from .train_state import StateFolder, restore_rng_state
from .training_log import TrainingLog, open_log

log = logging.getLogger(__name__)

MAX_BROKEN_STEPS = 10  # non-finite losses in a row that end a run


class TrainingDiverged(RuntimeError):
    """The loss stayed non-finite; the last good checkpoint is kept."""


class Stage(Protocol):
    """One training stage: everything that `TrainLoop` does not know."""

    def train_step(self, iteration: int) -> dict[str, float]:
        """Run one optimiser step; the metrics hold at least "loss"."""

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs, generators of its own included."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""

    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Validate, write a sample sheet into `folder`, return validation metrics."""

    def export(self, folder: Path) -> None:
        """Write the finished model."""


@dataclass(frozen=True)
class LoopConfig:
    """How often a run logs, validates and saves (in iterations), and where."""

    output: Path
    max_iters: int
    log_every: int = 20
    report_every: int = 500
    save_every: int = 500
    resume: bool = True


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying at once; the list fills when one arrives."""
    received: list[int] = []
    previous = {number: signal.signal(number, lambda n, _: received.append(n))
                for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class TrainLoop:
    """Drives a `Stage` from its last saved state to `max_iters`."""

    def __init__(self, stage: Stage, config: LoopConfig, settings: dict[str, Any],
                 records: TrainingLog | None = None) -> None:
        self.stage, self.config = stage, config
        self.states = StateFolder(config.output / "states")
        self.records = records or open_log(config.output)
        self.throughput = Throughput()
        self.settings = settings
        self.start = self._resume()

    def run(self, on_step: Callable[[dict[str, float]], None] | None = None) -> bool:
        """Train; True when the last iteration was reached, False when stopped by a signal (state saved)."""
        try:
            return self._run(on_step)
        finally:
            self.records.close()

    def _run(self, on_step: Callable[[dict[str, float]], None] | None) -> bool:
        self.records.write(event="start", iteration=self.start, **self.settings)
        broken = 0
        began = time.monotonic()
        with stop_requests() as stopped:
            for iteration in range(self.start, self.config.max_iters):
                metrics = self.throughput.measured(self.stage.train_step, iteration)
                broken = 0 if math.isfinite(metrics["loss"]) else broken + 1
                if broken >= MAX_BROKEN_STEPS:
                    raise TrainingDiverged(
                        f"the loss was not finite for {broken} steps (iteration {iteration}): lower the learning "
                        f"rate and run again, {self.states.folder} holds the last good state")
                done = iteration + 1
                self._after_step(done, metrics, time.monotonic() - began, healthy=not broken)
                if on_step is not None:
                    on_step(metrics)
                if stopped:
                    self.states.save(done, self.stage.state_dict())
                    log.info("stopped by signal %d after iteration %d, state saved", stopped[0], done)
                    return False
        self.stage.export(self.config.output)
        return True

    def _resume(self) -> int:
        state = self.states.load_newest() if self.config.resume else None
        if state is None:
            return 0
        self.stage.load_state_dict(state)
        restore_rng_state(state["rng"])
        log.info("resumed after iteration %d", state["iteration"])
        return state["iteration"]

    def _after_step(self, done: int, metrics: dict[str, float], seconds: float, healthy: bool) -> None:
        last = done == self.config.max_iters
        if done % self.config.log_every == 0 or last:
            self.records.write(event="train", iteration=done, seconds=round(seconds, 2), **metrics)
        if done % self.config.report_every == 0 or last:
            report = self.stage.report(self.config.output, done)
            self.records.write(event="report", iteration=done, **report)
            self.records.picture("sheet", done, self.config.output / "sheets" / f"{done:07d}.png")
            log.info("iteration %d: %s", done, ", ".join(f"{k} {v:.4g}" for k, v in report.items()))
        if healthy and (done % self.config.save_every == 0 or last):
            self.states.save(done, self.stage.state_dict())
