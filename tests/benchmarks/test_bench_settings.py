"""The benchmarks of faster settings: each one is as warm as the plain one that it is compared with."""
from __future__ import annotations

import argparse
from types import ModuleType

import pytest
import torch
from conftest import small_model
from torch import Tensor

from benchmarks import bench_fast, bench_fastvar
from benchmarks.subject import Subject
from inference.settings import RestoreSettings

COLD, WARM = 10.0, 1.0  # seconds of a setting's first run and of the others


class Cold(Subject):
    """All settings take the same time, but for their first run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model, self.pictures, self.batch_size = small_model(), [torch.zeros(3, 8, 8)], 1
        self.runs, self.has_meaning = args.runs, False
        self.seen: set[str] = set()

    def _restore_all(self, settings: RestoreSettings) -> tuple[float, list[Tensor]]:
        key = repr(settings)
        seconds = WARM if key in self.seen else COLD
        self.seen.add(key)
        return seconds, self.pictures


@pytest.mark.parametrize("bench, flags", [(bench_fast, []), (bench_fastvar, ["--ratios", "0.4,0.3", "0.5,0.5"])])
def test_no_setting_pays_for_its_first_run(bench: ModuleType, flags: list[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Subject", Cold)
    rows = bench.measure(bench.build_parser().parse_args(["--preset", "varsr-debug", *flags]))["settings"]
    assert len(rows) > 3  # of one timed run each
    assert all(row["seconds"] == WARM and row["speedup"] == 1 for row in rows)
