"""Names of files that would steer a terminal, forge lines of a log, or be formulas of a spreadsheet."""
from __future__ import annotations

import csv
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import evaluate
import test_tile as tile_script
from inference.jobs import left_out_lines
from inference.report import rows_of_table
from utils.errors import UserError, describe, tolerant_output, visible
from utils.flags import set_up_logging

ROOT = Path(__file__).resolve().parents[2]
STEERING = ["\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "\r", "\n", "\x7f", "\u202egnp.", "\u2028", "\x00"]


@pytest.mark.parametrize("part", STEERING)
def test_what_steers_is_shown_escaped(part: str, capsys: pytest.CaptureFixture) -> None:
    assert part not in visible(f"a{part}b") and "\\" in visible(f"a{part}b")
    assert describe(UserError(f"a{part}b: no such file")).endswith("b: no such file")
    assert visible("größer — 写真 'a' \\x1b") == "größer — 写真 'a' \\x1b"
    with tolerant_output():
        print(f"a{part}b")
    assert part.strip("\r\n") == "" or part not in capsys.readouterr().out


def test_bars_can_still_steer(capsys: pytest.CaptureFixture) -> None:
    with tolerant_output():
        sys.stdout.write("\rhalf\x1b[A\tdone\n")
    assert capsys.readouterr().out == "\rhalf\x1b[A\tdone\n"


@pytest.fixture()
def root_logger() -> Iterator[logging.Logger]:
    """Its level is afterwards what it was."""
    root = logging.getLogger()
    level = root.level
    yield root
    root.setLevel(level)


def test_a_message_is_one_line_of_the_log(root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(root_logger, "handlers", [])  # as when a program starts
    set_up_logging()
    logging.getLogger("a").warning("%s: skipped", "x.png\nb.png: fine\x1b[2J")
    assert stream.getvalue() == "x.png\\nb.png: fine\\x1b[2J: skipped\n"


def test_a_run_over_such_names(tmp_path: Path, weights: Path) -> None:
    """Bad ones and good ones; nothing of the names reaches the terminal as it is."""
    for name in ("a\x1b[2J.png", "b\nfailed: c.png: all is lost.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        (tmp_path / f"bad {name}").write_bytes(b"nonsense")
    (tmp_path / "other.\x1b[31m").touch()
    done = subprocess.run([sys.executable, "test_tile.py", "-i", str(tmp_path), "-o", str(tmp_path / "out"), "--model",
                           str(weights), "--dtype", "fp32"], cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "2 restored" in said and "2 failed" in said
    assert "\x1b[2J" not in said and "\x1b[31m" not in said and "a\\x1b[2J.png" in said
    assert not any(line.startswith("failed: c.png") for line in said.splitlines())


def test_kinds_that_are_left_out_are_one_line() -> None:
    assert left_out_lines({".a\nfailed: b": 1}) == ["left out: 1 .a\\nfailed: b"]


def test_tables_hold_no_formulas(tmp_path: Path, weights: Path) -> None:
    for folder, side in (("LR", 12), ("HR", 48)):
        (tmp_path / "=set" / folder).mkdir(parents=True)
        for name in ("=1+1.png", "@b.png", "c.png"):
            Image.new("RGB", (side, side), "gray").save(tmp_path / "=set" / folder / name)
    results = tmp_path / "=set" / "out"
    run = ["-i", str(tmp_path / "=set" / "LR"), "-o", str(results), "--model", str(weights), "--dtype", "fp32"]
    assert tile_script.main(run) == 0
    assert tile_script.main([*run, "--skip_existing"]) == 0  # reads its own table again
    assert set(rows_of_table(results / "metrics.csv")) == {"=1+1.png", "@b.png", "c.png"}
    assert evaluate.main(["--results", str(results), "--names", "=ours", "--hr", str(tmp_path / "=set" / "HR"),
                          "--protocol", "basicsr-y", "--output", str(tmp_path / "ev"), "--device", "cpu"]) == 0
    for table in (results / "metrics.csv", tmp_path / "ev" / "metrics.csv", tmp_path / "ev" / "summary.csv"):
        with open(table, newline="", encoding="utf-8") as file:
            cells = [text for row in csv.reader(file) for text in row]
        assert not [text for text in cells if text.startswith(("=", "@"))]
    with open(results / "metrics.csv", newline="", encoding="utf-8") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == ["'=1+1.png", "'@b.png", "c.png", "mean"]
