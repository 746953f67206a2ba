"""`make gpu` on a machine without a GPU: parts that fail, hang or find no time; what they leave; a dry run of one."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.clock import StageClock
from benchmarks.gpu_parts import DRY, Bench
from benchmarks.gpu_summary import summary

GIVES = "import json; json.dump({'measurements': {'first': {'measured_in_seconds': 1}}, 'running': 'next'}, " \
        "open({file!r}, 'w')); "
PROGRAMS = {"good": GIVES, "broken": GIVES + "import sys; print('why', file=sys.stderr); sys.exit(3)",
            "slow": GIVES + "import time; time.sleep(60)",
            "slow tests": "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('2 failed')\n"}


@pytest.fixture()
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Short programs in place of the parts, by part; good ones where the test names none."""
    chosen: dict[str, str] = {}

    def command(name: str, args: argparse.Namespace, file: Path, seconds: float) -> list[str]:
        return [sys.executable, "-c", PROGRAMS[chosen.get(name, "good")].replace("{file!r}", repr(str(file)))]
    monkeypatch.setattr(gpu, "command_of", command)
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    return chosen


def run(folder: Path, *flags: str) -> tuple[int, dict[str, dict], str]:
    """Exit code, the files' contents by part, the summary."""
    code = gpu.main(["--device", "cpu", "--results", str(folder), *flags])
    files = {path.stem.removeprefix("cpu_"): json.loads(path.read_text()) for path in folder.glob("*.json")}
    return code, files, (folder / "cpu_summary.txt").read_text()


def test_all_pass(stand_in: dict[str, str], tmp_path: Path) -> None:
    code, files, text = run(tmp_path)
    assert code == 0 and set(files) == {part.name for part in gpu.PARTS}
    assert all(result["status"].startswith("passed") for result in files.values())
    assert len(list(tmp_path.iterdir())) == len(gpu.PARTS) + 1 and "targets" in text


def test_a_failing_part_does_not_stop_the_others(stand_in: dict[str, str], tmp_path: Path,
                                                 capfd: pytest.CaptureFixture) -> None:
    stand_in["generation"] = "broken"
    code, files, text = run(tmp_path, "--only", "generation", "data")
    assert code == 1
    assert files["generation"]["status"] == "failed, exit code 3" and files["generation"]["said"] == ["why"]
    assert files["generation"]["measurements"] and files["data"]["status"] == "passed"
    assert "failed, exit code 3" in text and "| why" in capfd.readouterr().out


def test_a_part_over_its_limit_is_stopped(stand_in: dict[str, str], tmp_path: Path) -> None:
    stand_in["generation"] = "slow"
    code, files, text = run(tmp_path, "--only", "generation", "data", "--minutes", "0.03")
    assert code == 1
    assert files["generation"]["status"].startswith("over its limit") and files["generation"]["measurements"]
    assert files["data"]["status"] == "passed" and "generation: stopped in next" in text


def test_tests_over_their_limit_tell_what_failed(stand_in: dict[str, str], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in["tests"] = "slow tests"
    code, files, _ = run(tmp_path, "--only", "tests", "--minutes", "0.13")
    assert code == 1 and files["tests"]["status"].endswith("s: 2 failed") and files["tests"]["said"] == ["2 failed"]


def test_parts_that_do_not_fit_are_left_out(stand_in: dict[str, str], tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST", 8.0)
    (tmp_path / "cpu_data.json").write_text("{}")  # of an earlier run
    code, files, text = run(tmp_path, "--only", "data", "compiled", "--minutes", "0.1")
    assert code == 1 and {result["status"] for result in files.values()} == {"left out: no time left"}
    assert text.count("left out") == 2


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                        capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--results", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().out.count("\n") == 1 and not (tmp_path / "none").exists()


def test_the_tests_are_found_by_their_marker() -> None:
    marked = gpu.gpu_tests()
    assert Path("tests/models/test_model.py") in marked and Path("tests/models/test_config.py") not in marked


def bench(folder: Path, until: float = float("inf")) -> Bench:
    return Bench("part", torch.device("cpu"), DRY, folder / "part.json", until)


def test_measurements_are_written_one_by_one(tmp_path: Path) -> None:
    taken, seen = bench(tmp_path), []

    def measurement() -> dict[str, float]:
        seen.append(json.loads((tmp_path / "part.json").read_text()))
        return {"seconds": 0.5}
    taken.measure("first", measurement)
    taken.measure("second", measurement)
    assert [content["running"] for content in seen] == ["first", "second"]
    assert seen[1]["measurements"]["first"]["seconds"] == 0.5 and not taken.failed


def test_a_measurement_that_breaks_is_recorded(tmp_path: Path) -> None:
    taken = bench(tmp_path)

    def breaks() -> dict[str, float]:
        raise RuntimeError("one line\nand more")

    def does_not_fit() -> dict[str, float]:
        raise torch.OutOfMemoryError("tried to allocate")
    assert taken.measure("memory", does_not_fit)["out_of_memory"] == "tried to allocate" and not taken.failed
    assert taken.measure("broken", breaks)["error"] == "RuntimeError: one line" and taken.failed
    assert taken.measure("after", lambda: {"seconds": 1.0})["seconds"] == 1.0
    assert "part: broken: error: RuntimeError" in summary("a GPU", {"part": taken.result})


def test_what_finds_no_time_is_left_out(tmp_path: Path) -> None:
    assert "left_out" in bench(tmp_path, until=0.0).measure("late", lambda: pytest.fail("not to be called"))


def test_targets_are_judged() -> None:
    row = {"measured_in_seconds": 1, "way": "bf16 graphs", "batch_size": 1, "seconds_per_picture": 0.020,
           "first_seconds": 1.0, "peak_memory_gb": 3.0}
    slow = {**row, "way": "bf16 plain", "seconds_per_picture": 0.080}
    step = {"measured_in_seconds": 1, "embedded": True, "stage": "transformer", "batch_size": 64,
            "samples_per_second": 100.0}
    text = summary("a GPU", {"generation": {"measurements": {"a": row, "b": slow}},
                             "training": {"measurements": {"c": step}}})
    assert "at most 45 ms: reached (bf16 graphs)" in text and "at least 4000 /s: missed" in text
    assert "not measured" in text and "80.0" in text


def test_a_clock_leaves_everything_as_it_was() -> None:
    layer, before = torch.nn.Linear(2, 2), torch.Tensor.backward
    with StageClock(torch.device("cpu")) as clock:
        clock.wrap(layer, "forward", lambda *_: "layer")
        clock.wrap(torch.Tensor, "backward", lambda *_: "backward")
        layer(torch.ones(1, 2)).sum().backward()
    assert set(clock.sums) == {"layer", "backward"}
    assert "forward" not in vars(layer) and torch.Tensor.backward is before


def test_a_clock_waits_for_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr("benchmarks.machine.synchronize", waits.append)
    layer = torch.nn.Linear(2, 2)
    for part, expected in (("layer", 2), ("layer (host)", 0)):
        waits.clear()
        with StageClock(torch.device("cpu")) as clock:
            clock.wrap(layer, "forward", lambda *_, part=part: part)
            layer(torch.ones(1, 2))
        assert len(waits) == expected and clock.sums[part] > 0


def test_a_dry_run_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    code, files, text = run(tmp_path, "--only", "picture", "--minutes", "1")
    rows = files["picture"]["measurements"]
    assert code == 0, files
    assert rows["64 pixels, in parts"]["windows"] == 9 and rows["64 pixels, in parts"]["parts"]["generation"] > 0
    assert "9 windows" in text and gpu_parts.PICTURE in text
