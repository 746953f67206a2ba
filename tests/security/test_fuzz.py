"""2,000 damaged files, always the same ones, and the run itself: what it starts from, what it notices, how it is used.

`python -m tests.security.fuzz --minutes 60 --seed 7 --keep findings` reads more.
"""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from pictures.formats import SUFFIXES
from tests.security import fuzz, fuzz_process
from tests.security.fuzz import Report, all_inputs, run
from tests.security.fuzz_mutations import STRUCTURED
from tests.security.fuzz_process import Answer, Input, Watched
from tests.security.fuzz_seeds import seeds
from tests.security.fuzz_structures import STRUCTURES, made_up

INPUTS, SEED, PROCESSES = 2000, 22, 2
READ_WELL = 0.1  # of the inputs at least: more damage would be stopped at the first gate and find nothing


@pytest.fixture(scope="module")
def process() -> Iterator[Watched]:
    with Watched() as watched:
        yield watched


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line_and_in_bounds():
    report = run(islice(all_inputs(SEED), INPUTS), PROCESSES)
    assert report.total == INPUTS
    assert not report.findings, report
    assert sum(counts["ok"] for counts in report.counts.values()) > READ_WELL * INPUTS, report
    assert set(report.counts) >= {each.kind for each in seeds()} | {each.kind for each in STRUCTURES.values()}


@pytest.mark.parametrize("kind", sorted({seed.kind for seed in seeds()} - {"foreign"}))
def test_whole_files_of_every_kind_are_read(process: Watched, kind: str):
    answers = [process.read(seed) for seed in seeds() if seed.kind == kind]
    assert any(answer.outcome == "ok" for answer in answers), answers
    assert not [answer for answer in answers if answer.is_finding]


def test_kinds_that_are_not_read_are_refused_under_a_name_of_one_that_is(process: Watched):
    answers = [process.read(seed) for seed in seeds() if seed.kind == "foreign"]
    assert len(answers) > 10 and {answer.outcome for answer in answers} == {"refused"}


def test_every_suffix_that_is_read_has_a_seed():
    same = {".jpeg": ".jpg", ".jfif": ".jpg", ".jpe": ".jpg", ".tiff": ".tif", ".heif": ".heic", ".pgm": ".ppm",
            ".pbm": ".ppm", ".pnm": ".ppm"}
    seeded = {f".{seed.kind}" for seed in seeds()} | {Path(seed.name).suffix for seed in seeds()}
    assert {same.get(suffix, suffix) for suffix in SUFFIXES} <= seeded


def test_a_seed_gives_the_same_inputs_in_every_process():
    code = ("from tests.security.test_fuzz import *\nfrom zlib import crc32\n"
            "print([crc32(given.data) for given in islice(all_inputs(3), 260)])")
    hashes = ({**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(fuzz_process.ROOT)} for seed in "12")
    first, second = (subprocess.run([sys.executable, "-c", code], env=environment, cwd=fuzz_process.ROOT, check=True,
                                    capture_output=True).stdout for environment in hashes)
    assert first == second
    assert made_up("chunks", 5, seed=1) != made_up("chunks", 5, seed=2)


def test_structures_are_those_of_kinds_that_there_are():
    assert set(STRUCTURED) <= {seed.kind for seed in seeds()} | {"avif", "heic", "jxl"}


# ---- the run notices what it is made for

GOOD = Input("ppm", "picture", "a.ppm", b"P5 1 1 255\n\0")
# A reader that does what its file says, in the process of the run.
MISBEHAVING = """
from tests.security import fuzz_worker as worker

def misbehave(path):
    exec(path.read_text(), {"path": path, "ImageError": worker.ImageError})
    return 0

worker.READERS["misdeed"] = worker.Reader(misbehave, (worker.ImageError, FileNotFoundError))
worker.main()
"""
MISDEEDS = {
    "while True: pass": "hang", "len(b'a' * (330 * 2 ** 20))": "memory", "import os; os.abort()": "crash",
    "raise KeyError('x')": "raised: KeyError", "bytearray(2 ** 40)": "raised: MemoryError",
    "raise SystemExit(0)": "raised: SystemExit",
    "raise FileNotFoundError(f'{path}: a\\nb')": "raised: the error is not one line",
    "raise ImageError('no')": "raised: the error does not name the file",
    "raise ImageError(f'{path}: damaged')": "refused: ImageError", "print('not an answer')": "ok: "}


def test_misdeeds_of_readers_are_noticed_and_the_next_file_is_read(tmp_path: Path, monkeypatch):
    (tmp_path / "misbehaving.py").write_text(MISBEHAVING, encoding="utf-8")
    monkeypatch.setattr(fuzz_process, "WORKER", "misbehaving")
    monkeypatch.setattr(fuzz_process, "HANG", 2.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(fuzz_process.ROOT))))
    with Watched() as watched:
        for code, expected in MISDEEDS.items():
            found = watched.read(Input("misdeed", "misdeed", "a.txt", code.encode()))
            assert f"{found.outcome}: {found.text}".startswith(expected), found
            assert watched.read(GOOD).outcome == "ok"


def test_findings_are_told_by_cause_and_kept(tmp_path: Path, monkeypatch, capsys):
    def read(self: Watched, given: Input) -> Answer:
        return Answer("raised", "KeyError: 'x'", ("/lib/a.py:1 in f", "pictures/b.py:7 in g", "tests/c.py:1 in h"), 0.1)

    monkeypatch.setattr(Watched, "read", read)
    assert fuzz.main(["--minutes", "0.01", "--kind", "bmp", "--keep", str(tmp_path / "kept")]) == 1
    said = capsys.readouterr().out
    assert "x picture: KeyError at pictures/b.py in g\n" in said
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == fuzz.KEPT_PER_CAUSE
    assert {path.name for path in kept[0].iterdir()} == {"a.bmp", "finding.txt"}


def test_a_run_without_findings_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(Watched, "read", lambda self, given: Answer("ok"))
    assert fuzz.main(["--minutes", "0.01", "--kind", "bmp"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["kind", "inputs", *fuzz.OUTCOMES]


def test_a_report_counts_by_kind():
    report = Report()
    for outcome in ("ok", "ok", "refused"):
        report.add(GOOD, Answer(outcome))
    assert report.total == 3
    assert str(report).splitlines()[1].split() == ["ppm", "3", "2", "1", "0", "0", "0", "0"]
