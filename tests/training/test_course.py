"""Runs by the clock: they end in time, and their schedules do what they would by iterations, on any machine."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from training.log import TrainingLog
from training.loop import LoopConfig, TrainLoop
from training.schedule import TIMED_LENGTH, TIMED_REPORTS, Course, Schedule, TimedCourse, share_of

SETUP, FIRST_STEP, REPORT = 20.0, 9.0, 3.0  # seconds


class Machine:
    """A clock that training moves, and a stage that takes its time on it: the first step loads and compiles."""

    best_metric = ("score", 1.0)

    def __init__(self, step_seconds: float, now: float = 0.0, report_seconds: float = REPORT) -> None:
        self.step_seconds, self.now, self.report_seconds = step_seconds, now, report_seconds
        self.places: list[float] = []
        self.reports: list[float] = []
        self.fresh = True
        self.exported_at = 0.0

    def clock(self) -> float:
        return self.now

    def train_step(self, iteration: int, place: float) -> dict[str, float]:
        self.now += FIRST_STEP if self.fresh else self.step_seconds
        self.fresh = False
        self.places.append(place)
        return {"loss": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        self.now += self.report_seconds
        self.reports.append(self.now)
        return {"score": 0.0}

    def export(self, folder: Path) -> None:
        self.exported_at = self.now


def train(machine: Machine, folder: Path, minutes: float, until: float | None = None, monkeypatch=None) -> TrainLoop:
    """A run whose set-up takes SETUP; it is broken off at `until` seconds, like a process that is killed."""
    monkeypatch.setattr("training.loop.time.monotonic", machine.clock)
    course = TimedCourse(minutes, clock=machine.clock)
    machine.now += SETUP
    monkeypatch.setattr(LoopConfig, "course", lambda config: course)
    loop = TrainLoop(machine, LoopConfig(folder, TIMED_LENGTH, minutes=minutes), {}, TrainingLog([]))

    class Killed(Exception):
        pass

    def watch(_: dict[str, float]) -> None:
        if until is not None and machine.now > until:
            raise Killed
    with contextlib.suppress(Killed):
        loop.run(watch)
    return loop


@pytest.mark.parametrize("step_seconds", [0.02, 0.4, 7.0])
def test_it_ends_in_time_and_uses_the_time_whatever_the_machine(step_seconds: float, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(step_seconds)
    train(machine, tmp_path, 5, monkeypatch=monkeypatch)
    assert machine.exported_at <= 300 + step_seconds
    assert machine.exported_at > 300 - 2 * REPORT - 2 * step_seconds
    assert machine.places == sorted(machine.places) and machine.places[0] == 0
    assert len(machine.reports) in (TIMED_REPORTS, TIMED_REPORTS + 1) or step_seconds > 1


@pytest.mark.parametrize("step_seconds", [0.02, 0.4])
def test_the_learning_rate_takes_the_course_of_a_run_of_iterations(step_seconds: float, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(step_seconds, report_seconds=0.1)
    train(machine, tmp_path, 5, monkeypatch=monkeypatch)
    steps = len(machine.places)
    timed = Schedule("cos", TIMED_LENGTH, TIMED_LENGTH // 10)
    counted = Schedule("cos", steps, steps // 10)
    rates = [timed.rate(place) for place in machine.places]
    assert max(abs(rate - counted.rate(i)) for i, rate in enumerate(rates)) < 0.04  # the first guess of the end is 3 %
    assert rates[-1] < 0.02 and max(rates) > 0.999


def test_a_resumed_run_has_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Machine(0.4)
    train(first, tmp_path, 5, until=180, monkeypatch=monkeypatch)
    again = Machine(0.4, now=1000.0)  # after a night
    loop = train(again, tmp_path, 5, monkeypatch=monkeypatch)
    saved = first.places[loop.start - 1]
    assert 0 < again.places[0] - saved < 0.2 * TIMED_LENGTH  # set-up takes of what is left
    assert again.exported_at - 1000 < 300 - 120  # states are saved once a minute
    assert again.places[-1] > 0.98 * TIMED_LENGTH
    finished = Machine(0.4, now=5000.0)
    train(finished, tmp_path, 5, monkeypatch=monkeypatch)
    assert finished.places == [] and finished.exported_at > 5000


def test_a_set_up_that_takes_all_the_time_leaves_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(0.4)
    train(machine, tmp_path, 0.1, monkeypatch=monkeypatch)
    assert machine.places == [0] and len(machine.reports) == 1 and machine.exported_at


def test_a_course_of_iterations_counts_them() -> None:
    course = Course(10, report_every=4, save_every=5)
    places = [course.place(i) for i in range(11)]
    assert places == list(range(11)) and course.minutes_left is None
    assert [done for done in range(1, 11) if course.reports(done, 0, 0)] == [4, 8]
    assert [done for done in range(1, 11) if course.saves(done, 0, 0)] == [5, 10]


def test_a_resumed_run_goes_back_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Machine(0.4, report_seconds=40)  # far more than the first guess of the end
    train(first, tmp_path, 10, until=400, monkeypatch=monkeypatch)
    again = Machine(0.4, now=1000.0, report_seconds=40)
    loop = train(again, tmp_path, 10, monkeypatch=monkeypatch)
    assert again.places[0] >= first.places[loop.start - 1]
    finished = Machine(0.4, now=5000.0, report_seconds=40)
    train(finished, tmp_path, 10, monkeypatch=monkeypatch)
    assert finished.places == [] and finished.reports == []


@pytest.mark.parametrize("share, batch", [(0.25, 2), (0.1, 4), (0.5, 1), (0.9, 3), (0.0, 5), (1.0, 5)])
def test_a_share_is_kept_however_small_the_batches(share: float, batch: int) -> None:
    counts = [share_of(share, i * batch, batch) for i in range(200)]
    assert sum(counts) == round(share * 200 * batch) and max(counts) - min(counts) <= 1
