"""Batches that nothing ends: faults at every step, names of every kind, runs beside each other, stops."""
from __future__ import annotations

import csv
import ctypes
import errno
import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pyiqa_stub import Folders, stand_in

import inference.large
import inference.products
import inference.report
import inference.runner
import test_tile as script
import utils.files
from evaluation.metrics.full_reference import psnr_y
from inference.jobs import AUTO, OutputNames, collect, jobs_for, left_out_lines, settled
from inference.large import Owner, WorkFolder
from models.weights.load import identity
from pictures import formats, result_file
from pictures.formats import InputError, matching_reference
from pictures.picture import read_header
from utils.errors import UserError, guarded

ROOT = Path(__file__).resolve().parents[2]
LARGE = (104, 101)  # LR pixels: more windows of the debug model than fit into a wave


@pytest.fixture()
def run(weights: Path) -> Callable[..., int]:
    """The script on the debug model, with flags of any type."""
    def call(*flags: object) -> int:
        return script.main([str(flag) for flag in (*flags, "--model", weights, "--dtype", "fp32")])
    return call


def noise(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0, **options: object) -> Path:
    """Write a random picture of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def pair(folder: Path, name: str, hr: str | None = None, size: int = 32) -> Path:
    """An LR picture and its original; the LR picture's path."""
    noise(folder / "HR" / f"{hr or name}.png", (size, size), 1)
    return noise(folder / "LR" / f"{name}.png")


def table(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["picture"]: row for row in csv.DictReader(file)}


def in_a_process(weights: Path, *flags: object, environment: dict[str, str] | None = None,
                 **options: object) -> subprocess.CompletedProcess:
    """The script as a program of its own."""
    command = [sys.executable, str(ROOT / "test_tile.py"), *map(os.fsencode, map(str, flags)), "--model", str(weights),
               "--dtype", "fp32"]
    return subprocess.run(command, env={**os.environ, **(environment or {})}, check=False, capture_output=True,
                          **options)


# ---- faults at every step ----

FAULTS = {"ENOSPC": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "MemoryError": MemoryError(),
          "UnicodeEncodeError": UnicodeEncodeError("ascii", "ü", 0, 1, "for a test"), "Ctrl-C": KeyboardInterrupt()}
# The function that a step of the run goes through. Of three pictures the second one's call fails.
STEPS = {"read": (inference.runner, "read_picture"), "plan": (inference.runner.Runner, "_lay_out"),
         "generate": (inference.runner, "generate_windows"), "render": (inference.products, "render"),
         "write": (inference.runner.ResultFile, "finish"), "rename": (utils.files.os, "replace"),
         "measure": (inference.report, "psnr_ssim"), "log": (inference.runner, "append_log"), "print": (sys, "stdout")}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_costs_one_picture(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capfd: pytest.CaptureFixture, step: str, fault: str) -> None:
    for name in "abc":
        pair(tmp_path / "set", name)
    out, log = tmp_path / "out", tmp_path / "run.jsonl"
    owner, name = STEPS[step]
    calls, second = [], 2 * 2 - 1 if step == "measure" else 2  # measured are the result and its bicubic picture
    broken = {"done": False}
    monkeypatch.setattr(result_file, "MEMORY_BYTES", 1)  # pixels wait in files, which must not stay

    if step == "print":
        class Terminal(io.StringIO):
            def write(self, text: str) -> int:
                if text.strip() and not broken["done"]:
                    broken["done"] = True
                    raise FAULTS[fault]
                return super().write(text)
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    else:
        original = getattr(owner, name)

        def failing(*args: object, **keywords: object) -> object:
            calls.append(args)
            if len(calls) == second:
                raise FAULTS[fault]
            return original(*args, **keywords)
        monkeypatch.setattr(owner, name, failing)
    code = run("-i", tmp_path / "set" / "LR", "-o", out, "--batch_size", 1, "--log", log)
    monkeypatch.undo()
    said = terminal.getvalue() if step == "print" else capfd.readouterr().out

    whole = {path.name for path in out.iterdir()} if out.exists() else set()
    assert not [name for name in whole if name.startswith(".")], "nothing half-written is left"
    pictures = whole - {"metrics.csv"}
    for picture in pictures:
        assert Image.open(out / picture).size == (32, 32)
    if fault == "Ctrl-C":
        assert code == 130
        expected = {"print": set(), "measure": {"a.png", "b.png"}, "log": {"a.png", "b.png"}}.get(step, {"a.png"})
        assert pictures == expected
        assert f"{len(expected)} restored" in said or step == "print"
        assert ("metrics.csv" in whole) == bool(expected)
    elif step in ("measure", "print"):
        assert code == 0 and pictures == {"a.png", "b.png", "c.png"}
        assert "3 restored" in said and ("1 not measured" in said) == (step == "measure")
        unmeasured = {"b.png"} if step == "measure" else set()
        assert set(table(out / "metrics.csv")) == (pictures | {"mean"}) - unmeasured
    elif step == "log":
        assert code == 1 and pictures == {"a.png", "b.png", "c.png"} and "3 restored" in said and str(log) in said
        assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == ["restored"] * 2
    else:
        assert code == 1 and pictures == {"a.png", "c.png"} and "2 restored" in said and "1 failed" in said
        assert set(table(out / "metrics.csv")) == {"a.png", "c.png", "mean"}
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert [Path(r["source"]).name for r in records if r["status"] == "failed"] == ["b.png"]


def test_tables_and_sheets_that_cannot_be_written_cost_no_picture(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                  capsys: pytest.CaptureFixture) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    pair(tmp_path, "a")
    monkeypatch.setattr(inference.report, "write_table", full)
    monkeypatch.setattr(inference.runner, "save_picture", full)
    assert run("-i", tmp_path / "LR", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png") == 1
    said = capsys.readouterr().out
    assert "1 restored" in said and said.count("No space left") == 2 and (tmp_path / "out" / "a.png").exists()


# ---- names ----

def test_a_name_as_long_as_names_can_be(run, tmp_path: Path) -> None:
    names = ["n" * 246 + ".png", "ü" * 123 + ".png", "a." + "b" * 245 + ".png"]
    for name in names:
        noise(tmp_path / "in" / name)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    noise(tmp_path / "large" / names[1], LARGE)  # this one has a work folder
    assert run("-i", tmp_path / "large", "-o", tmp_path / "out2", "--batch_size", 16) == 0
    assert os.listdir(tmp_path / "out2") == [names[1]]


def test_a_result_name_that_no_file_can_have_costs_one_picture(run, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "in" / ("n" * 246 + ".png"))
    noise(tmp_path / "in" / "b.png")
    for more in ([], ["--skip_existing"]):
        assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--suffix", "_enlarged", *more) == 1
        assert os.listdir(tmp_path / "out") == ["b_enlarged.png"] and "too long" in capsys.readouterr().out


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "cp1252"}])
def test_names_that_are_no_text(weights: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    raw = os.fsencode(tmp_path)
    os.mkdir(raw + b"/LR")
    os.mkdir(raw + b"/HR")
    deep = np.arange(192, dtype=np.uint16).reshape(8, 8, 3) * 300
    for name in (b"caf\xe9", "\u9e93".encode()):
        noise(tmp_path / "x.png", (32, 32)).rename(os.fsdecode(raw + b"/HR/" + name + b".png"))
        noise(tmp_path / "x.png").rename(os.fsdecode(raw + b"/LR/" + name + b".png"))
    tifffile.imwrite(tmp_path / "x.tif", deep, photometric="rgb")
    os.rename(tmp_path / "x.tif", raw + b"/LR/d\xe9ep.tif")
    with open(raw + b"/LR/br\xf8ken-\xe9\x94\xaa.png", "wb") as file:
        file.write(b"no picture")
    done = in_a_process(weights, "-i", tmp_path / "LR", "-o", tmp_path / "out", "--log", tmp_path / "log.jsonl",
                        "--sheet", tmp_path / "sheet.png", environment=environment)
    assert done.returncode == 1 and b"3 restored" in done.stdout and b"1 failed" in done.stdout, done
    assert b"Traceback" not in done.stderr and b"failed: " in done.stdout
    names = sorted(os.listdir(raw + b"/out"))
    assert names == [b"caf\xe9.png", b"d\xe9ep.tif", b"metrics.csv", "\u9e93.png".encode()]
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == 4 and any(record["source"].endswith("caf\udce9.png") for record in records)
    assert "caf\\udce9.png" in table(tmp_path / "out" / "metrics.csv") and (tmp_path / "sheet.png").exists()


def test_frames_and_pictures_of_one_name(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    (tmp_path / "in").mkdir()
    frames[0].save(tmp_path / "in" / "anim.gif", save_all=True, append_images=frames[1:])
    noise(tmp_path / "in" / "anim_frame0001.png")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--frames") == 1
    assert "anim_frame0001.png" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--frames", "--suffix", "_x4") == 0
    assert len(os.listdir(tmp_path / "out")) == 3


def test_an_unrelated_file_beside_the_sources_is_safe(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "a.jpg")
    before = noise(tmp_path / "a.png", seed=5).read_bytes()
    flags = ("-i", tmp_path / "*.jpg", "-o", tmp_path, "--ext", "png")
    assert run(*flags) == 1
    assert "a.png" in capsys.readouterr().err and (tmp_path / "a.png").read_bytes() == before
    (tmp_path / "a.png").unlink()
    assert run(*flags) == 0 and run(*flags) == 0  # our own result may be made again
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.png"]


def test_results_are_no_sources(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "a.png")
    noise(tmp_path / "deep" / "b.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("-i", ".", "-o", "results", "--recursive") == 0
        assert sorted(str(p) for p in Path("results").rglob("*.png")) == ["results/a.png", "results/deep/b.png"]
    for _ in range(2):
        assert run("-i", "deep", "-o", "deep", "--suffix", "_x4") == 0
        assert sorted(os.listdir("deep")) == ["b.png", "b_x4.png"]


@pytest.mark.parametrize("pattern, output, ext", [("*", "", "png"), ("**/*.jpg", "out", "auto")])
def test_a_stopped_batch_goes_on_among_its_results(run, tmp_path: Path, capsys: pytest.CaptureFixture, pattern: str,
                                                   output: str, ext: str) -> None:
    noise(tmp_path / "a.jpg")
    noise(tmp_path / "b.jpg", seed=1)
    result = f"b.{'png' if ext == 'png' else 'jpg'}"
    flags = ("-i", tmp_path / pattern, "-o", tmp_path / output, "--ext", ext)
    assert run(*flags) == 0
    (tmp_path / output / result).unlink()
    assert run(*flags, "--skip_existing") == 0 and "1 skipped" in capsys.readouterr().out
    assert (tmp_path / output / result).exists() and run(*flags) == 0
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4


@pytest.mark.parametrize("flags", [(), ("--skip_existing",)])
def test_pictures_that_differ_in_kind_alone_are_refused(run, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                        flags: tuple) -> None:
    noise(tmp_path / "a.jpg")
    noise(tmp_path / "a.png", seed=1)
    assert run("-i", tmp_path, "-o", tmp_path, "--ext", "png", *flags) == 1
    assert "a.jpg" in capsys.readouterr().err and len(os.listdir(tmp_path)) == 2


def test_a_result_without_its_tokens_is_made_again(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "a.jpg")
    flags = ("-i", tmp_path / "*.jpg", "-o", tmp_path, "--ext", "png", "--skip_existing")
    assert run(*flags) == 0 and run(*flags, "--save_tokens") == 0
    assert (tmp_path / "a_tokens.safetensors").exists() and "1 skipped" not in capsys.readouterr().out
    assert run(*flags, "--save_tokens") == 0 and "1 skipped" in capsys.readouterr().out
    (tmp_path / "a_tokens.safetensors").unlink()
    before = noise(tmp_path / "a.png", seed=5).read_bytes()
    assert run(*flags, "--save_tokens") == 1 and (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize("first, second", [("a.jpg", "A.png"), ("caf\u00e9.jpg", "cafe\u0301.png"),
                                           ("trip/a.jpg", "Trip/a.png")])
def test_names_that_are_one_on_some_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str,
                                          second: str) -> None:
    jobs = jobs_for([(Path(name), Path(name).parent) for name in (first, second)], tmp_path / "out")
    assert len(settled(jobs)[0]) == 2 and not os.listdir(tmp_path)

    def folded(path: Path) -> str:
        return unicodedata.normalize("NFC", str(path)).casefold()
    monkeypatch.setattr("inference.jobs.is_there",
                        lambda path: any(folded(path) == folded(found) for found in tmp_path.rglob("*")))
    with pytest.raises(InputError, match="both be written"):
        settled(jobs)
    assert not os.listdir(tmp_path)


def test_what_else_is_written_has_a_name_of_its_own(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "in" / "a.png")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--sheet", tmp_path / "out" / "a.png") == 1
    assert "--sheet" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_sheet_of_some_pictures_is_made_of_few(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(12):
        noise(tmp_path / "in" / f"{place:02d}.png", seed=place)
    made, entry = [], inference.report.sheet_entry
    monkeypatch.setattr(inference.report, "sheet_entry", lambda columns: made.append(entry(columns)) or made[-1])
    flags = ("-i", tmp_path / "in", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png")
    assert run(*flags, "--sheet_pictures", 2) == 0 and len(made) == 8
    with Image.open(tmp_path / "sheet.png") as two:
        assert two.size == inference.runner.sheet_of({"00": made[0], "06": made[4]}).size
    assert run(*flags, "--skip_existing") == 0 and len(made) == 8 + 12


def test_what_is_too_large_for_the_sheet_is_told(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(inference.report, "SHEET_PIXELS", 32 * 32)
    noise(tmp_path / "in" / "large.png", (9, 8))
    flags = ("-i", tmp_path / "in", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png")
    assert run(*flags) == 0 and not (tmp_path / "sheet.png").exists()
    assert "not on the sheet: 1 of more than 1,024 pixels" in capsys.readouterr().out
    noise(tmp_path / "in" / "small.png")
    assert run(*flags, "--skip_existing") == 0 and (tmp_path / "sheet.png").exists()
    assert "not on the sheet: 1 of" in capsys.readouterr().out


def test_transparent_pictures_are_compared_as_they_look(run, tmp_path: Path) -> None:
    ramp = np.linspace(40, 200, 64).astype(np.uint8)
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32, :, :3], pixels[:32, :, 3] = ramp[:, None], 255  # below it nothing
    for folder, side in (("HR", 64), ("LR", 16)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(tmp_path / folder / "a.png")
    shown, entry = [], inference.report.sheet_entry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference.report, "sheet_entry", lambda columns: shown.append(columns) or entry(columns))
        assert run("-i", tmp_path / "LR", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png") == 0
        assert run("-i", tmp_path / "LR", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png",
                   "--skip_existing") == 0
    for columns in shown:
        assert psnr_y(columns["bicubic"], columns["HR"]) > 25
        assert float(columns["bicubic"][:, 48:].min()) > 0.98, "white, as in the result"


def test_pictures_of_one_name_are_all_on_the_sheet(run, tmp_path: Path) -> None:
    for i, folder in enumerate("xyz"):
        noise(tmp_path / "in" / folder / "1.png", seed=i)
    flags = ("-o", tmp_path / "out", "--recursive")
    assert run("-i", tmp_path / "in", *flags, "--sheet", tmp_path / "three.png") == 0
    assert run("-i", tmp_path / "in" / "x", *flags, "--sheet", tmp_path / "one.png") == 0
    assert Image.open(tmp_path / "three.png").height > 1.5 * Image.open(tmp_path / "one.png").height


# ---- runs beside each other ----

def work_for(output: Path, ready: object, go_on: object) -> None:
    """Another run that has made the folder its own."""
    folder = WorkFolder(output)
    folder.prepare({"seed": 0})
    ready.set()
    go_on.wait(60)


def test_a_work_folder_belongs_to_one_run(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, output = noise(tmp_path / "a.png", LARGE), tmp_path / "out" / "a.png"
    context = multiprocessing.get_context("fork")
    ready, go_on = context.Event(), context.Event()
    other = context.Process(target=work_for, args=(output, ready, go_on))
    other.start()
    assert ready.wait(60)
    kept = sorted(os.listdir(WorkFolder(output).path))
    assert run("-i", source, "-o", output, "--batch_size", 16) == 1
    assert f"process {other.pid}" in capsys.readouterr().out and not output.exists()
    assert sorted(os.listdir(WorkFolder(output).path)) == kept
    other.kill()
    other.join()
    assert run("-i", source, "-o", output, "--batch_size", 16) == 0  # the lock of a run that has ended holds nobody up
    assert os.listdir(tmp_path / "out") == ["a.png"]


def test_locks_of_other_machines_and_of_reused_numbers(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "a.png")
    folder.path.mkdir()
    me = Owner.this_process()
    lock = folder.path / WorkFolder.LOCK
    lock.write_text(json.dumps({**me.__dict__, "host": "elsewhere"}))
    with pytest.raises(UserError, match="elsewhere"):
        folder.prepare({})
    lock.write_text("")  # being written
    with pytest.raises(UserError):
        folder.prepare({})
    lock.write_text(json.dumps({**me.__dict__, "started": me.started + 1}))
    folder.prepare({})
    assert Owner.of(lock.read_text()) == me


class Kernel32:
    """What of Windows' library is asked whether a process runs; `answer`: of waiting for its end, 0 once it is there;
    None: there is no such process that may be asked."""

    def __init__(self, answer: int | None) -> None:
        self.closed = 0
        self.OpenProcess = lambda rights, inherited, number: None if answer is None else 77  # may have attributes
        self.WaitForSingleObject = lambda handle, milliseconds: answer

    def CloseHandle(self, handle: object) -> None:
        """Count it."""
        self.closed += 1


@pytest.mark.parametrize("answer, error, runs", [(258, 0, True), (0, 0, False), (None, 5, True), (None, 87, False)])
def test_processes_are_asked_without_harm_on_windows(monkeypatch: pytest.MonkeyPatch, answer: int | None, error: int,
                                                     runs: bool) -> None:
    kernel, killed = Kernel32(answer), []
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    assert Owner.this_process().is_running() is runs
    assert not killed and kernel.closed == (answer is not None)


def test_a_large_picture_needs_no_pread(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what else of POSIX Windows lacks."""
    source = noise(tmp_path / "a.png", LARGE)
    assert run("-i", source, "-o", tmp_path / "with.png") == 0
    for name in ("pread", "pwrite", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    assert run("-i", source, "-o", tmp_path / "without.png") == 0
    assert Image.open(tmp_path / "with.png").tobytes() == Image.open(tmp_path / "without.png").tobytes()


def test_a_run_whose_store_vanished_fails(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture) -> None:
    render = inference.products.render

    def removed(*args: object):
        yield from render(*args)
        for file in WorkFolder(tmp_path / "out" / "a.png").path.iterdir():
            file.unlink()
    monkeypatch.setattr(inference.products, "render", removed)
    assert run("-i", noise(tmp_path / "a.png", LARGE), "-o", tmp_path / "out", "--batch_size", 16) == 1
    assert "removed" in capsys.readouterr().out and not (tmp_path / "out" / "a.png").exists()


# ---- tables ----

def test_the_table_holds_all_results_of_the_folder(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in "abc":
        pair(tmp_path, name)
    flags = ("-o", out, "--skip_existing")
    assert run("-i", tmp_path / "LR" / "[ab].png", *flags) == 0
    first = table(out / "metrics.csv")
    (out / "b.png").unlink()
    assert run("-i", tmp_path / "LR", *flags) == 0
    everything = table(out / "metrics.csv")
    assert set(everything) == {"a.png", "b.png", "c.png", "mean"} and everything["a.png"] == first["a.png"]
    mean = np.mean([float(everything[f"{name}.png"]["psnr_y"]) for name in "abc"])
    assert float(everything["mean"]["psnr_y"]) == pytest.approx(mean, abs=1e-3)
    assert run("-i", tmp_path / "LR" / "a.png", "-o", out) == 0
    assert set(table(out / "metrics.csv")) == set(everything)
    (out / "c.png").unlink()
    Image.new("RGB", (32, 32)).save(out / "b.png")  # no longer what was measured
    os.utime(out / "b.png", (time.time() + 5,) * 2)
    assert run("-i", tmp_path / "LR" / "a.png", "-o", out) == 0
    assert set(table(out / "metrics.csv")) == {"a.png", "mean"}


def test_the_tables_fid_is_of_its_pictures(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of what lies beside them, and of all of them or none: whose originals earlier runs took is not known."""
    fid, out = Folders(), tmp_path / "out"
    stand_in(monkeypatch, fid=fid)
    for name in "ab":
        pair(tmp_path, name)
    noise(tmp_path / "LR" / "alone.png")
    noise(tmp_path / "HR" / "unused.png")
    noise(out / "a_scales" / "side1.png")
    assert run("-i", tmp_path / "LR", "-o", out) == 0
    assert fid.seen == [tuple(sorted((folder / f"{name}.png").read_bytes() for name in "ab")
                              for folder in (out, tmp_path / "HR"))]
    assert float(table(out / "metrics.csv")["mean"]["fid"]) == 7.5
    assert run("-i", tmp_path / "LR" / "a.png", "-o", out) == 0
    mean = table(out / "metrics.csv")
    assert set(mean) == {"a.png", "b.png", "mean"} and "fid" not in mean["mean"]


def test_what_was_there_is_measured_again(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in "ab":
        pair(tmp_path, name)
    flags = ("-i", tmp_path / "LR", "-o", tmp_path / "out", "--skip_existing")
    assert run(*flags) == 0
    first = (tmp_path / "out" / "metrics.csv").read_text()
    (tmp_path / "out" / "metrics.csv").unlink()
    capsys.readouterr()
    assert run(*flags, "--sheet", tmp_path / "sheet.png") == 0
    assert (tmp_path / "out" / "metrics.csv").read_text() == first and (tmp_path / "sheet.png").exists()
    said = capsys.readouterr().out
    assert "2 skipped" in said and "psnr_y" in said


def test_an_original_of_another_size_costs_the_metrics_alone(run, tmp_path: Path, capfd: pytest.CaptureFixture,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    pair(tmp_path, "a")
    pair(tmp_path, "b", size=30)
    assert run("-i", tmp_path / "LR", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png") == 0
    said = capfd.readouterr().out
    assert "2 restored" in said and "1 not measured" in said and "failed" not in said
    assert len([line for line in caplog.messages if "30x30" in line and "b.png" in line]) == 1
    assert set(table(tmp_path / "out" / "metrics.csv")) == {"a.png", "mean"}


@pytest.mark.parametrize("name", ["0801x4", "0801_x2", "0801_LR", "0801X8", "0801_LRx3", "0801"])
def test_originals_are_found_under_the_names_of_data_sets(tmp_path: Path, name: str) -> None:
    source = pair(tmp_path, name, hr="0801")
    assert matching_reference(source) == tmp_path / "HR" / "0801.png"
    exact = noise(tmp_path / "HR" / f"{name}.png")
    assert matching_reference(source) == exact


def test_originals_of_which_none_fits_are_named(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair(tmp_path, "a", hr="b")
    assert run("-i", tmp_path / "LR", "-o", tmp_path / "out") == 0
    assert str(tmp_path / "HR") in caplog.text


# ---- stops ----

@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_tells_what_is_finished(weights: Path, tmp_path: Path, number: int, code: int) -> None:
    for i in range(400):
        pair(tmp_path, f"{i:03d}")
    command = [sys.executable, str(ROOT / "test_tile.py"), "-i", str(tmp_path / "LR"), "-o", str(tmp_path / "out"),
               "--model", str(weights), "--dtype", "fp32", "--batch_size", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("out/*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    results = {path.name for path in (tmp_path / "out").iterdir()}
    restored = results - {"metrics.csv"}
    assert 1 <= len(restored) < 400 and not [name for name in results if name.startswith(".")]
    assert f"{len(restored)} restored" in out and "stopped" in out
    measured = set(table(tmp_path / "out" / "metrics.csv")) - {"mean"}
    assert measured <= restored and len(restored - measured) <= 1  # one may have been stopped while it was measured


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_picture_that_is_there_when_a_stop_comes_is_counted(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                              capsys: pytest.CaptureFixture, number: int) -> None:
    for name in "abc":
        noise(tmp_path / "in" / f"{name}.png")
    replace = os.replace

    def replaced(*paths: Path) -> None:  # the stop comes at the worst moment: the file is there, and not yet counted
        replace(*paths)
        signal.raise_signal(number)
    monkeypatch.setattr(utils.files.os, "replace", replaced)
    assert guarded("test_tile.py", lambda: run("-i", tmp_path / "in", "-o", tmp_path / "out", "--batch_size", "1")) \
        == 128 + number
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert "1 restored" in capsys.readouterr().out


@pytest.mark.parametrize("buffered", [True, False])
def test_a_closed_pipe_ends_nothing(weights: Path, tmp_path: Path, buffered: bool) -> None:
    for name in "abc":
        noise(tmp_path / "in" / f"{name}.png")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(ROOT / "test_tile.py"), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"),
               "--model", str(weights), "--dtype", "fp32"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}  # what is kept fails when it ends
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, env=environment)
    os.close(write)
    assert done.returncode == 0 and b"Broken" not in done.stderr and b"Traceback" not in done.stderr
    assert len(os.listdir(tmp_path / "out")) == 3


# ---- what is read ----

def test_large_files_are_known_by_one_header_reader(tmp_path: Path) -> None:
    Image.new("1", (20_000, 9_100)).save(tmp_path / "bits.png")  # above the limit of Pillow's own
    # a kind that Pillow does not know
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((1500, 1600, 3), np.float32), photometric="rgb")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("L", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    found = {name: read_header(tmp_path / name) for name in ("bits.png", "float.tif", "turned.jpg")}
    assert {name: (header.width, header.height) for name, header in found.items()} == {
        "bits.png": (20_000, 9_100), "float.tif": (1600, 1500), "turned.jpg": (20, 30)}
    if formats.HEIF:
        formats.register_plugins()
        Image.new("RGB", (1600, 1600)).save(tmp_path / "a.heic")
        assert read_header(tmp_path / "a.heic").width == 1600


def test_a_large_picture_of_any_kind_has_a_work_folder(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((*LARGE, 3), dtype=np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    prepared: list[Path] = []
    monkeypatch.setattr(WorkFolder, "prepare", lambda self, plan: prepared.append(self.path) or self.path.mkdir())
    run("-i", tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--batch_size", 16)
    assert len(prepared) == 1


def test_kinds_that_people_have(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "in"
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c.tga", "TGA"), ("d.pbm", "PPM")):
        noise(source / name, format=kind)
    (source / "e.txt").touch()
    (source / "f.TXT").touch()
    (source / "g.xyz").touch()
    assert run("-i", source, "-o", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a.jpg", "b.jpg", "c.png", "d.png"]
    said = capsys.readouterr().out
    assert said.count("2 .txt") == 1 and "1 .xyz" in said
    monkeypatch.setitem(sys.modules["inference.jobs"].__dict__, "NEEDED", {".heic": "pillow-heif"})
    assert left_out_lines({".heic": 3}) == ["left out: 3 .heic (needs pillow-heif)"]


def test_a_folder_with_nothing_but_files_that_need_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").touch()
    monkeypatch.setitem(sys.modules["inference.jobs"].__dict__, "SUFFIXES", (".png",))
    monkeypatch.setitem(sys.modules["inference.jobs"].__dict__, "NEEDED", {".heic": "pillow-heif"})
    with pytest.raises(InputError, match="pillow-heif"):
        collect(str(tmp_path))


def test_brackets_links_and_folders_that_are_called_like_pictures(tmp_path: Path) -> None:
    noise(tmp_path / "trip [2019]" / "a.jpg")
    noise(tmp_path / "trip [2019]" / "album.jpg" / "b.jpg")
    (tmp_path / "trip [2019]" / "notes.txt").touch()
    found = collect(str(tmp_path / "trip [2019]" / "*"))
    assert [path.name for path, _ in found.pictures] == ["a.jpg"] and found.left_out == {".txt": 1}
    assert [path.name for path, _ in collect(str(tmp_path / "trip [2019]" / "*.txt")).pictures] == ["notes.txt"]
    found = collect(str(tmp_path / "trip [2019]" / "*.jpg"))
    assert [path.name for path, _ in found.pictures] == ["a.jpg"]
    assert [path.name for path, _ in collect(str(tmp_path / "trip [2019]")).pictures] == ["a.jpg"]
    assert [path.name for path, _ in collect(str(tmp_path / "trip [2019]" / "album.jpg")).pictures] == ["b.jpg"]
    noise(tmp_path / "elsewhere" / "c.jpg")
    (tmp_path / "trip [2019]" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "trip [2019]" / "twin").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "trip [2019]")
    found = collect(str(tmp_path / "trip [2019]"), recursive=True)
    assert sorted(path.name for path, _ in found.pictures) == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("flags, said", [
    (("-o", "picture.tga"), "picture.tga"), (("-o", "picture.gif"), "picture.gif"), (("-o", "a.txt"), "a.txt"),
    (("--log", "folder"), "--log folder"), (("--log", "a.txt/log"), "--log"), (("--sheet", "x.xyz"), "--sheet x.xyz"),
    (("--sheet", "folder"), "--sheet folder"), (("-o", "-", "--frames"), "--frames"),
    (("-i", "*.png", "--recursive"), "--recursive")])
def test_mistakes_are_found_before_the_model_is(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture, flags: tuple, said: str) -> None:
    noise(tmp_path / "a.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inference.settings.load_model", lambda args: pytest.fail("too late"))
    assert run("-i", "a.png", *flags) == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and sorted(os.listdir()) == ["a.png", "a.txt", "folder"]


def test_a_picture_through_pipes(weights: Path, tmp_path: Path) -> None:
    data = noise(tmp_path / "a.jpg").read_bytes()
    done = in_a_process(weights, "-i", "-", "-o", "-", input=data)
    assert done.returncode == 0 and Image.open(io.BytesIO(done.stdout)).format == "JPEG", done.stderr
    assert b"1 restored" in done.stderr
    done = in_a_process(weights, "-i", "-", "-o", tmp_path / "out", "--ext", "png", input=data)
    assert done.returncode == 0 and Image.open(tmp_path / "out" / "stdin.png").size == (32, 32)
    assert in_a_process(weights, "-i", "-", "-o", "-", input=b"").returncode == 1


def test_a_picture_with_the_wrong_ending_stays_what_it_is(run, tmp_path: Path,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.jpg", format="PNG")
    Image.fromarray(np.full((8, 8, 4), 100, np.uint8)).save(tmp_path / "clear.jpg", format="PNG")
    assert OutputNames(ext=AUTO).name(tmp_path / "deep.jpg") == "deep.png"
    assert run("-i", tmp_path, "-o", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out" / "deep.png").mode == "I;16"
    assert Image.open(tmp_path / "out" / "clear.png").mode == "RGBA"
    with caplog.at_level("INFO"):
        assert run("-i", tmp_path, "-o", tmp_path / "lossy", "--ext", "jpg") == 0
    assert "16 bits" in caplog.text and "transparency" in caplog.text


def test_results_name_the_model_and_no_path(run, weights: Path, tmp_path: Path) -> None:
    for ending in ("png", "jpg", "tif", "webp"):
        assert run("-i", noise(tmp_path / "a.png"), "-o", tmp_path / f"b.{ending}") == 0
        data = (tmp_path / f"b.{ending}").read_bytes()
        digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()[:16]
        assert f"{weights.name} (sha256 {digest})".encode() in data and str(tmp_path).encode() not in data
        assert str(weights.parent).encode() not in data


def test_large_weights_are_hashed_in_parts(tmp_path: Path) -> None:
    seen: set[str] = set()
    for size, change in ((2 ** 28 + 5, None), (2 ** 28 + 5, b"x"), (2 ** 28 + 6, None)):
        with open(tmp_path / "big.pth", "wb") as file:
            file.truncate(size)
            if change:
                file.seek(size // 2 + 100)
                file.write(change)
        seen.add(identity(str(tmp_path / "big.pth")))
    assert len(seen) == 3 and all(found.startswith("big.pth (sampled sha256 ") for found in seen)
