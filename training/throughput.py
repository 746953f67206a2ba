"""How fast a training goes and how much of its time it waits for data; what its progress bar says."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Result = TypeVar("Result")
Metrics = dict[str, float]

MEMORY = 0.95  # share of the past in the rates after each step: they follow the last twenty or so
# What a bar shows, where the step has it: (metric, label, format).
SHOWN = (("loss", "loss", "{:.4f}"), ("accuracy", "acc", "{:.1%}"), ("psnr", "dB", "{:.2f}"), ("lr", "lr", "{:.2g}"),
         ("samples_per_second", "samples/s", "{:.3g}"), ("data_wait", "wait", "{:.0%}"))


def timed(call: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    """What a call returns, and the seconds that it took."""
    began = time.perf_counter()
    return call(*arguments), time.perf_counter() - began


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
