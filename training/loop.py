"""The training loop that every stage shares: log, checkpoint, resume, stop on request."""
from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from utils.errors import UserError, first_line, stop_requests
from utils.ranks import Ranks

from .log import TrainingLog, open_log, spared
from .schedule import Course, TimedCourse
from .states import StateFolder, restore_rng_state, rng_state

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Metrics = dict[str, float]

MEMORY = 0.95  # share of the past in the rates after each step: they follow the last twenty or so
# What a bar shows, where the step has it: (metric, label, format).
SHOWN = (("loss", "loss", "{:.4f}"), ("accuracy", "acc", "{:.1%}"), ("psnr", "dB", "{:.2f}"), ("lr", "lr", "{:.2g}"),
         ("samples_per_second", "samples/s", "{:.3g}"), ("data_wait", "wait", "{:.0%}"),
         ("minutes_left", "left", "{:.1f} min"))

MAX_BROKEN_STEPS = 10  # non-finite losses or gradients in a row that end a run
BEST_FOLDER = "best"
# Settings whose change a resumed run says, and what it means.
COMPARED = {"batch_size": "a step sees another number of samples", "ranks": "a step sees another number of samples",
            "accumulation": "a step sees another number of samples",
            "max_iters": "the learning rate takes another course",
            "minutes": "the learning rate takes another course"}
STOPPED, PLACE, BROKEN, LEFT = "stopped", "place", "skipped_steps", "minutes_left"
DEFAULT_EVERY = 500  # iterations between validations, and between states, of a run of iterations


def timed(call: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    """What a call returns, and the seconds that it took."""
    began = time.perf_counter()
    return call(*arguments), time.perf_counter() - began


def numbers(metrics: Mapping[str, float | Tensor]) -> Metrics:
    """Metrics whose tensors (of one element each) became numbers, for which the device is waited for once. Until then
    a step leaves it unwatched, so that it always has work."""
    names = [name for name, value in metrics.items() if isinstance(value, Tensor)]
    if not names:
        return dict(metrics)
    values = torch.stack([metrics[name].detach().float().reshape(()) for name in names]).tolist()
    return {**metrics, **dict(zip(names, values, strict=True))}


class Throughput:
    """Samples a second and the share of waiting, over the last steps alone: reports and saving do not count."""

    def __init__(self) -> None:
        self.samples = self.wait = self.seconds = 0.0

    def measured(self, step: Callable[..., Metrics], *arguments: Any) -> Metrics:
        """Run a training step; its "samples" and "wait" (seconds without data) become rates of the last steps.

        A step that gives neither keeps its metrics as they are.
        """
        metrics, seconds = timed(step, *arguments)
        samples, wait = metrics.pop("samples", None), metrics.pop("wait", None)
        self.seconds = MEMORY * self.seconds + seconds
        if samples is not None:
            self.samples = MEMORY * self.samples + samples
            metrics["samples_per_second"] = self.samples / self.seconds
        if wait is not None:
            self.wait = MEMORY * self.wait + wait
            metrics["data_wait"] = self.wait / self.seconds
        return metrics


def bar_text(metrics: Mapping[str, float]) -> dict[str, str]:
    """A progress bar's postfix, in the order of SHOWN."""
    return {label: form.format(metrics[name]) for name, label, form in SHOWN if name in metrics}


class TrainingDiverged(RuntimeError):
    """The loss stayed non-finite; the last good checkpoint is kept."""


class Stage(Protocol):
    """One training stage: everything that `TrainLoop` does not know. Every rank calls every method."""

    best_metric: tuple[str, float]  # of `report`, and 1.0 where more is better or -1.0 where less is

    def train_step(self, iteration: int, place: float) -> dict[str, float]:
        """Run one optimiser step; the metrics hold at least "loss". A step whose gradients are not finite is left
        out, and told by a "loss" or "grad_norm" that is not finite either. place: where it lies on the run's course,
        for schedules (`schedule.py`)."""

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs, generators of its own included."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""

    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Validate, write a sample sheet into `folder`, return validation metrics (the main rank alone)."""

    def export(self, folder: Path) -> None:
        """Write the model (the main rank alone)."""


@dataclass(frozen=True)
class LoopConfig:
    """How long a run is, how often it logs, validates and saves (in iterations), and where."""

    output: Path
    max_iters: int  # without effect on a run by the clock
    log_every: int = 20
    report_every: int | None = None  # None: DEFAULT_EVERY, or as suits the clock
    save_every: int | None = None
    keep: int = 2  # states, the newest ones, beside the best one
    resume: bool = True
    minutes: float | None = None  # length in place of max_iters
    began: float | None = None  # when the minutes began to count (time.monotonic); None: when the loop is made

    def course(self) -> Course:
        """What it says of the length."""
        if self.minutes is None:
            return Course(self.max_iters, self.report_every or DEFAULT_EVERY, self.save_every or DEFAULT_EVERY)
        return TimedCourse(self.minutes, self.report_every, self.save_every, self.began)


class TrainLoop:
    """Drives a `Stage` from its last saved state to the end of its course, on one rank or several together."""

    def __init__(self, stage: Stage, config: LoopConfig, settings: dict[str, Any],
                 records: TrainingLog | None = None, ranks: Ranks | None = None) -> None:
        """records: where the main rank logs; files in `config.output` by default."""
        self.stage, self.config, self.ranks = stage, config, ranks or Ranks()
        self.states = StateFolder(config.output / "states", config.keep, start_over=not config.resume)
        self.records = (records or open_log(config.output)) if self.ranks.is_main else TrainingLog([])
        self.throughput, self.course = Throughput(), config.course()
        self.settings = settings
        self.skipped = 0  # steps that broke
        self.stopped_by: int | None = None  # the signal
        self.start = self.ranks.together(self._resume)
        if len(set(self.ranks.gather(self.start))) > 1:  # the main one alone writes states
            raise UserError(f"the processes do not see the same states in {self.states.folder}: --output must be one "
                            "folder for all of them")

    def run(self, on_step: Callable[[dict[str, float]], None] | None = None) -> bool:
        """Train; True when the course's end was reached, False when stopped by a signal (state saved).

        Raises TrainingDiverged after MAX_BROKEN_STEPS broken steps in a row, OSError where the result cannot be
        written (a state that cannot is told in the log, and training goes on).
        """
        try:
            return self._run(on_step)
        finally:
            self.records.close()

    def _run(self, on_step: Callable[[dict[str, float]], None] | None) -> bool:
        self.records.write(event="start", iteration=self.start, **self.settings)
        broken, iteration = 0, self.start
        place = self.ranks.mean({PLACE: self.course.place(self.start)})[PLACE]  # as after each step: all agree on it
        began = time.monotonic()
        with stop_requests() as stopped:
            while place < self.course.length:
                metrics = self.throughput.measured(self._step, iteration, place, stopped)
                stop, after = metrics.pop(STOPPED) > 0, metrics.pop(PLACE)
                healthy = math.isfinite(metrics["loss"]) and math.isfinite(metrics.get("grad_norm", 0.0))
                broken = 0 if healthy else broken + 1
                self.skipped += not healthy
                if self.skipped:
                    metrics[BROKEN] = float(self.skipped)
                if broken >= MAX_BROKEN_STEPS:
                    raise TrainingDiverged(
                        f"loss or gradients were not finite for {broken} steps (iteration {iteration}): lower the "
                        f"learning rate and run again, {self.states.folder} holds the last good state")
                iteration += 1
                self._after_step(iteration, place, after, metrics, time.monotonic() - began, healthy)
                place = after
                if on_step is not None:
                    on_step(metrics)
                if stop:
                    self.stopped_by = stopped[0] if stopped else signal.SIGTERM  # of another rank: as good as any
                    self._save(iteration)
                    log.info("stopped by a signal after iteration %d, state saved", iteration)
                    return False
        self.stage.export(self.config.output)
        return True

    def _step(self, iteration: int, place: float, stopped: list[int]) -> dict[str, float]:
        """A step's metrics as means over the ranks, and so the place after it, which all agree on; samples are counted
        over all, and one stopped rank stops all."""
        metrics = self.stage.train_step(iteration, place)
        self.course.note_step()
        metrics = self.ranks.mean({**metrics, STOPPED: float(bool(stopped)), PLACE: self.course.place(iteration + 1)})
        if "samples" in metrics:
            metrics["samples"] *= self.ranks.world
        return metrics

    def _resume(self) -> int:
        state = self.states.load_newest() if self.config.resume else None
        if state is None:
            return 0
        try:
            self._restore(state)
        except (UserError, torch.OutOfMemoryError):
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
            raise UserError(f"the state after iteration {state['iteration']} in {self.states.folder} does not fit this "
                            f"run ({first_line(error)}): resume with the flags of its run, or start over with "
                            "--resume no") from error
        log.info("resumed after iteration %d", state["iteration"])
        return state["iteration"]

    def _restore(self, state: dict[str, Any]) -> None:
        self._compare(state["iteration"], state.get("settings", {}))
        self.stage.load_state_dict(state)
        self.skipped = int(state["skipped"])
        self.course.load_state_dict(state.get("course", {}))
        if len(state["rng"]) == self.ranks.world:
            restore_rng_state(state["rng"][self.ranks.rank])
        else:
            log.warning("the state was saved by %d processes, these are %d: random numbers go on differently",
                        len(state["rng"]), self.ranks.world)

    def _compare(self, iteration: int, before: Mapping[str, Any]) -> None:
        """Say what is not as it was in the run that is resumed. Raises UserError where nothing is left to do."""
        if self.config.minutes is None and iteration > self.config.max_iters:
            raise UserError(f"{self.states.folder} holds iteration {iteration}, --max_iters is "
                            f"{self.config.max_iters}: raise it, or start over with --resume no")
        for name, meaning in COMPARED.items():
            if name in before and before[name] != self.settings.get(name):
                log.warning("%s is %s, in the run that is resumed it was %s: from here on %s", name,
                            self.settings.get(name), before[name], meaning)

    def _after_step(self, done: int, before: float, after: float, metrics: dict[str, float], seconds: float,
                    healthy: bool) -> None:
        """Log, validate, save as is due after `done` steps, the last of which led from place `before` to `after`."""
        last = after >= self.course.length
        best = False
        if self.course.minutes_left is not None:
            metrics[LEFT] = self.course.minutes_left
        if done % self.config.log_every == 0 or last:
            self.records.write(event="train", iteration=done, seconds=round(seconds, 2), **metrics)
        began = time.monotonic()
        report = last or self.course.reports(done, before, after)
        if report:
            best = self._report(done)
        if healthy and (last or best or self.course.saves(done, before, after)):
            self._save(done)
        if report:
            self.course.note_report(time.monotonic() - began)

    def _report(self, done: int) -> bool:
        """Validate; True, with the model written, where it has never been better."""
        report = self.stage.report(self.config.output, done)
        self.records.write(event="report", iteration=done, **report)
        self.records.picture("sheet", done, self.config.output / "sheets" / f"{done:07d}.png")
        if self.ranks.is_main:
            log.info("iteration %d: %s", done, ", ".join(f"{k} {v:.4g}" for k, v in report.items()))
        name, sign = self.stage.best_metric
        score = self.ranks.gather(sign * report[name] if name in report else -math.inf)[0]
        if not self.ranks.gather(self.states.is_best(score))[0]:  # the main one's states count
            return False
        with spared("the best model so far", self.config.output):
            self.stage.export(self.config.output / BEST_FOLDER)
            if self.ranks.is_main:
                self.states.note_best(done, score)
        return True

    def _save(self, done: int) -> None:
        state = {**self.stage.state_dict(), "rng": self.ranks.gather(rng_state()), "skipped": self.skipped,
                 "course": self.course.state_dict(),
                 "settings": {name: self.settings[name] for name in COMPARED if name in self.settings}}
        if self.ranks.is_main:
            with spared(f"the state after iteration {done}", self.config.output):
                self.states.save(done, state)
