"""What the benchmark of a generation lets count: its time without the clock of the stages, its memory alone."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import small_model

from benchmarks import bench_generate, machine

RUNS, PRODUCTS, GENERATION = 3, 5e9, 2e9  # runs that are timed; bytes that the matrix products and a run allocate


class Device:
    """A device that says what it is asked for, and how much of its memory was in use at most."""

    def __init__(self) -> None:
        self.peak, self.waits = 0.0, []  # of each generation: how often the host waited for the device during it

    def multiply(self, *_: object) -> float:
        self.peak = max(self.peak, PRODUCTS)
        return 1e12

    def reset(self, *_: object) -> None:
        self.peak = 0.0

    def wait(self, *_: object) -> None:
        if self.waits:
            self.waits[-1] += 1


@pytest.fixture()
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """In place of the machine; with the debug model in place of the benchmark's."""
    device, model = Device(), small_model()
    generate = model.generate

    def watched(*args: object, **options: object) -> torch.Tensor:
        device.waits.append(0)
        device.peak = max(device.peak, GENERATION)
        picture = generate(*args, **options)
        device.waits.append(0)  # what comes after it is no part of it
        return picture
    monkeypatch.setattr(model, "generate", watched)
    for name, stand_in in (("gemm_rate", device.multiply), ("reset_peak_memory", device.reset),
                           ("synchronize", device.wait), ("peak_memory", lambda _: device.peak),
                           ("read_rate", lambda _: 1e10)):
        monkeypatch.setattr(machine, name, stand_in)
    monkeypatch.setattr(bench_generate, "load_subject", lambda args: (model, 0.0))
    return device


def test_timed_runs_wait_for_nothing_and_the_products_take_no_memory(device: Device, tmp_path: Path) -> None:
    assert bench_generate.main(["--preset", "varsr-debug", "--runs", str(RUNS), "--output",
                                str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    waits = device.waits[::2]
    assert waits[:RUNS + 1] == [0] * (RUNS + 1) and len(result["all_seconds"]) == RUNS
    assert waits[RUNS + 1:] and all(waits[RUNS + 1:])  # those of the stages
    assert set(result["stages"]) == {"prefix encoder", "scale 1", "scale 2", "scale 4", "head", "class modulations",
                                     "refiner", "decoder"}
    assert all(row["seconds"] > 0 for row in result["stages"].values())
    assert result["seconds"] == sorted(result["all_seconds"])[RUNS // 2]
    assert result["peak_memory_gb"] == GENERATION / 1e9
