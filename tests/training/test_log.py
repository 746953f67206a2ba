"""Log files are read back with the tools that people read them with."""
from __future__ import annotations

import builtins
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.log import JsonLines, LogError, TrainingLog, WandBSettings, open_log

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def events(folder: Path) -> Any:
    found = event_accumulator.EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})
    found.Reload()
    return found


def write_run(folder: Path, start: int, end: int, offset: float = 0.0) -> None:
    records = open_log(folder)
    records.write("start", start, preset="varsr-debug", scales=(1, 2, 4))
    for i in range(start + 1, end + 1):
        records.write("train", i, loss=i + offset, seconds=0.5)
    records.close()


def test_both_files_hold_the_same_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 4)
    assert lines(tmp_path)[0] == {"event": "start", "iteration": 0, "preset": "varsr-debug", "scales": [1, 2, 4]}
    assert [(line["iteration"], line["loss"]) for line in lines(tmp_path)[1:]] == [(i, i) for i in range(1, 5)]
    scalars = events(tmp_path).Scalars("train/loss")
    assert [(scalar.step, scalar.value) for scalar in scalars] == [(i, i) for i in range(1, 5)]


def test_a_resumed_run_replaces_what_was_lost(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 6)
    write_run(tmp_path, 4, 8, offset=100)  # killed after iteration 6, its last state is of iteration 4
    scalars = events(tmp_path).Scalars("train/loss")
    assert [(scalar.step, scalar.value) for scalar in scalars] == [
        (1, 1), (2, 2), (3, 3), (4, 4), (5, 105), (6, 106), (7, 107), (8, 108)]
    assert [line["iteration"] for line in lines(tmp_path) if line["event"] == "start"] == [0, 4]


def test_pictures_and_broken_numbers(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "sheet.png")
    records = open_log(tmp_path)
    records.write("start", 0)
    records.write("report", 5, psnr_y=float("inf"), ssim_y=0.5)
    records.picture("sheet", 5, tmp_path / "sheet.png")
    records.picture("sheet", 6, tmp_path / "there is none.png")
    records.close()
    assert lines(tmp_path)[-1] == {"event": "report", "iteration": 5, "psnr_y": None, "ssim_y": 0.5}
    image, = events(tmp_path).Images("sheet")
    assert (image.step, image.width, image.height) == (5, 4, 4)


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError("No module named 'tensorboard'")
        return real(name, *arguments)
    monkeypatch.setattr(builtins, "__import__", without)
    write_run(tmp_path, 0, 3)
    assert len(caplog.records) == 1 and "pip install tensorboard" in caplog.text
    assert len(lines(tmp_path)) == 4 and not (tmp_path / "tensorboard").exists()


def test_a_log_that_breaks_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(JsonLines):
        def write(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")
    records = TrainingLog([Full(tmp_path / "a"), JsonLines(tmp_path / "log.jsonl")])
    with caplog.at_level(logging.WARNING):
        for i in range(3):
            records.write("train", i, loss=1.0)
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert len(lines(tmp_path)) == 3


def test_an_unfinished_line_is_taken_away(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 3)
    whole = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(whole[:-5])
    write_run(tmp_path, 2, 3)
    assert [(line["event"], line["iteration"]) for line in lines(tmp_path)] == [
        ("start", 0), ("train", 1), ("train", 2), ("start", 2), ("train", 3)]


class FakeRun:
    """What a wandb run is told."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.logged, self.finished = arguments, [], False
        self.config = types.SimpleNamespace(update=lambda values, **_: self.arguments.update(config=values))

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_wandb_is_told_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda path: path))
    for start in (0, 2):
        records = open_log(tmp_path, WandBSettings("mine"))
        records.write("start", start, depth=24)
        records.write("train", start + 1, loss=2.0)
        records.close()
    open_log(tmp_path, WandBSettings("mine"), start_over=True)
    first, second, other = runs
    assert other.arguments["id"] != first.arguments["id"], "its steps begin anew"
    assert first.arguments["name"] == "mine" and first.arguments["config"] == {"depth": 24}
    assert "mode" not in first.arguments  # online or not is decided by wandb's own settings
    assert first.arguments["id"] == second.arguments["id"] and second.arguments["resume"] == "allow"
    assert first.logged == [(1, {"train/loss": 2.0})] and first.finished and second.logged[0][0] == 3


def test_wandb_that_cannot_begin_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=None))
    with pytest.raises(LogError, match="No API key configured.*WANDB_MODE=offline") as caught:
        open_log(tmp_path, WandBSettings("mine"))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LogError, match="pip install wandb"):
        open_log(tmp_path, WandBSettings("mine"))
