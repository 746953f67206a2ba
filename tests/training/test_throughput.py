"""Rates of training steps against a clock that is set by hand."""
from __future__ import annotations

import time

import pytest

from training.loop import Throughput, bar_text


class Clock:
    """Stands in for `time.perf_counter`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float, samples: float, wait: float) -> dict[str, float]:
        self.now += seconds
        return {"loss": 1.0, "samples": samples, "wait": wait}


def test_rates_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    throughput = Throughput()
    metrics = throughput.measured(lambda _: clock.step(2.0, 8.0, 0.5), 0)
    assert metrics == {"loss": 1.0, "samples_per_second": pytest.approx(4.0), "data_wait": pytest.approx(0.25)}
    clock.now += 1000  # a validation
    for i in range(200):  # twice as fast, without waiting
        metrics = throughput.measured(lambda _: clock.step(1.0, 8.0, 0.0), i)
    assert metrics["samples_per_second"] == pytest.approx(8.0, rel=1e-3)
    assert metrics["data_wait"] == pytest.approx(0.0, abs=1e-3)


def test_steps_that_tell_nothing_stay_as_they_are() -> None:
    assert Throughput().measured(lambda i: {"loss": float(i)}, 3) == {"loss": 3.0}


def test_what_the_bar_says() -> None:
    text = bar_text({"loss": 1.23456, "accuracy": 0.125, "lr": 5e-5, "samples_per_second": 12.34, "data_wait": 0.071,
                     "grad_norm": 9.0})
    assert text == {"loss": "1.2346", "acc": "12.5%", "lr": "5e-05", "samples/s": "12.3", "wait": "7%"}
