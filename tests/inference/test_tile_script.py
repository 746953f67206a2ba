"""test_tile.py as its users run it: files that stay what they are, bad input, large pictures, several processes."""
from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference.large
import inference.products
import inference.report
import inference.runner
import pictures.result_file
import test_tile as script
import utils.files
from inference.large import WorkFolder
from tests.ranks import start_ranks

LARGE = (104, 101)  # LR pixels: 17 x 17 windows of the debug model, more than fit into a wave


@pytest.fixture()
def run(weights: Path):
    """The script on the debug model, with flags of any type."""
    def call(*flags: object) -> int:
        return script.main([str(flag) for flag in (*flags, "--model", weights, "--dtype", "fp32")])
    return call


def noise(path: Path, size: tuple[int, int] = (9, 8), seed: int = 0, mode: str = "RGB", **options: object) -> Path:
    """Write a random picture of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def test_a_tree_is_mirrored_in_its_own_kinds(run, tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png")
    noise(tmp_path / "in" / "deep" / "er" / "a.jpg")
    noise(tmp_path / "in" / "deep" / "b.bmp")
    noise(tmp_path / "in" / ".hidden" / "c.png")
    out = tmp_path / "out"
    assert run("-i", tmp_path / "in", "-o", out, "--recursive", "--suffix", "_x4") == 0
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "a_x4.png", "deep/b_x4.png", "deep/er/a_x4.jpg"]
    assert Image.open(out / "deep" / "er" / "a_x4.jpg").size == (36, 32)


@pytest.mark.parametrize("flags, size", [
    (("--scale", 2.5), (22, 20)), (("--width", 27), (27, 24)), (("--width", 20, "--height", 30), (20, 30)),
    (("--longest", 45), (45, 40)), (("--scale", 16), (144, 128))])
def test_sizes(run, tmp_path: Path, flags: tuple, size: tuple[int, int]) -> None:
    assert run("-i", noise(tmp_path / "a.png"), "-o", tmp_path / "b.png", *flags) == 0
    assert Image.open(tmp_path / "b.png").size == size
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_the_file_held_is_kept(run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    noise(tmp_path / "a.jpg", (12, 8), exif=exif)
    gray16 = np.random.default_rng(1).integers(0, 65536, (8, 8), dtype=np.uint16)
    Image.fromarray(gray16).save(tmp_path / "deep.png")
    noise(tmp_path / "clear.png", mode="RGBA")
    assert run("-i", tmp_path, "-o", tmp_path / "out", "--seed", 3) == 0
    with Image.open(tmp_path / "out" / "a.jpg") as turned:
        assert turned.size == (32, 48) and turned.getexif()[271] == "Maker" and turned.getexif().get(274, 1) == 1
        assert "VARSR" in str(dict(turned.getexif()))
    with Image.open(tmp_path / "out" / "deep.png") as deep:
        assert deep.mode == "I;16" and "seed=3" in deep.info["VARSR"]
    assert Image.open(tmp_path / "out" / "clear.png").mode == "RGBA"


def test_a_night_of_bad_files(run, tmp_path: Path, capsys: pytest.CaptureFixture,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    good = [noise(source / name, size) for name, size in (("good.png", (8, 8)), ("line.png", (1, 900)),
                                                          ("zz.png", (9, 5)))]
    whole = noise(source / "cut.jpg", (200, 200)).read_bytes()
    (source / "cut.jpg").write_bytes(whole[:4000])
    (source / "empty.png").touch()
    (source / "text.png").write_text("hello")
    noise(source / "bomb.png", (300, 300))
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(source / "moving.gif", save_all=True, append_images=frames[1:])
    log = tmp_path / "log.jsonl"
    assert run("-i", source, "-o", out, "--max_pixels", 50_000, "--log", log) == 1
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in good)
    printed = capsys.readouterr()
    told = [line for line in printed.out.splitlines() if line.startswith("failed: ")]
    assert len(told) == 5 and "3 restored" in printed.out and "5 failed" in printed.out
    for name, reason in (("cut.jpg", "read"), ("empty.png", "empty"), ("text.png", "not a picture"),
                         ("bomb.png", "--max_pixels"), ("moving.gif", "--frames")):
        assert any(name in line and reason in line for line in told), (name, told)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(record["status"] for record in records) == ["failed"] * 5 + ["restored"] * 3
    line = next(record for record in records if record["source"].endswith("line.png"))
    assert (line["width"], line["height"]) == (4, 3600) and line["generate_seconds"] > 0


def test_every_frame(run, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert run("-i", tmp_path / "moving.gif", "-o", tmp_path / "out", "--frames") == 0
    red, blue = (pixels(tmp_path / "out" / f"moving_frame{i:04d}.png").mean((0, 1)) for i in (1, 2))
    assert red[0] > red[2] and blue[2] > blue[0]


def test_a_source_is_never_overwritten(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = noise(tmp_path / "a.png").read_bytes()
    assert run("-i", tmp_path, "-o", tmp_path) == 1
    assert "overwrite" in capsys.readouterr().out and (tmp_path / "a.png").read_bytes() == before
    assert run("-i", tmp_path, "-o", tmp_path, "--suffix", "_big") == 0 and (tmp_path / "a_big.png").exists()


def test_what_is_read_is_never_written_over(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, original = noise(tmp_path / "LR" / "a.png"), noise(tmp_path / "HR" / "a.png", (36, 32), 1)
    mask, before = noise(tmp_path / "mask.png", (36, 32)), original.read_bytes()

    def refused(*flags: object) -> str:
        files = {path: path.read_bytes() for path in (source, original, mask)}
        assert run("-i", source.parent, *flags) == 1
        assert {path: path.read_bytes() for path in files} == files
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error
    assert "HR picture" in refused("-o", original.parent)
    (tmp_path / "other").symlink_to(original.parent)
    assert "HR picture" in refused("-o", tmp_path / "other" / "a.png")
    for flag in ("--sheet", "--log"):
        for path in (source, original):
            assert f"{flag} {path}" in refused("-o", tmp_path / "out", flag, path)
    assert run("-i", source.parent, "-o", tmp_path / "out") == 0
    capsys.readouterr()
    assert f"--sheet {mask}" in refused("-o", tmp_path / "new", "--resume_from", tmp_path / "out" / "a.png", "--mask",
                                        mask, "--sheet", mask)
    assert run("-i", source.parent, "-o", original.parent, "--suffix", "_big") == 0 and original.read_bytes() == before


def test_a_full_disk_costs_one_picture(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture) -> None:
    for name in "ab":
        noise(tmp_path / "in" / f"{name}.png")
    encode, tried = pictures.file_writer.encode, []

    def full(store: object, path: Path, *rest: object) -> None:
        tried.append(path)
        if len(tried) == 1:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        encode(store, path, *rest)
    monkeypatch.setattr(pictures.result_file, "encode", full)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png"]
    assert "a.png" in (told := capsys.readouterr().out) and "No space left" in told


def test_a_folder_that_cannot_be_read(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "in" / "a.png")
    noise(tmp_path / "in" / "locked" / "b.png")
    scandir = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("locked"):  # root may read whatever the mode says
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", locked)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--recursive") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]
    assert "locked" in capsys.readouterr().out


def test_two_ways_to_say_the_size_are_refused(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("-i", noise(tmp_path / "a.png"), "--scale", 2, "--longest", 40) == 1
    assert "--longest" in capsys.readouterr().err


def test_pruning(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "a.png", (20, 20))
    pruned = ("--fastvar", "--fastvar_min_keep", 2, "--fastvar_later_layer_start", 1)
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "x") == 0
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "y", *pruned) == 0
    assert "layers pruned" in capsys.readouterr().out
    assert (pixels(tmp_path / "x" / "a.png") != pixels(tmp_path / "y" / "a.png")).any()


def test_a_stopped_picture_is_continued(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("-i", noise(tmp_path / "a.png", LARGE), "--batch_size", 16)
    assert run(*flags, "-o", tmp_path / "whole") == 0
    generate, render, left = inference.generate.generate_windows, inference.render.render, {"windows": 10, "bands": 4}
    asked, there, rows = [], [], []

    def stopping(count: str, step: object) -> None:
        left[count] -= 1
        if left[count] == 0:
            raise KeyboardInterrupt

    def generate_some(model, work, settings, batch, progress) -> None:
        asked.append(len(work))
        generate(model, work, settings, batch, lambda n: (progress(n), there.append(n), stopping("windows", n)))

    def render_some(*args: object):
        for band in render(*args):
            yield band
            stopping("bands", band)

    def render_counted(*args: object):
        for start, band in render(*args):
            rows.append(band.shape[1])
            yield start, band
    monkeypatch.setattr(inference.large, "generate_windows", generate_some)
    monkeypatch.setattr(inference.products, "render", render_some)
    for _ in range(2):  # stopped while generating, then while rendering
        assert run(*flags, "-o", tmp_path / "parts") == 130
        assert not (tmp_path / "parts" / "a.png").exists()
    work = []
    assert sum(there) == asked[0] and asked[1] == asked[0] - sum(there[:10])
    monkeypatch.setattr(inference.large, "generate_windows", lambda model, part, *rest: work.extend(part))
    monkeypatch.setattr(inference.products, "render", render_counted)
    assert run(*flags, "-o", tmp_path / "parts") == 0
    assert not work  # all windows were there
    assert 0 < sum(rows) < len(pixels(tmp_path / "parts" / "a.png")), "and some rows"
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["a.png"]
    assert np.abs(pixels(tmp_path / "parts" / "a.png") - pixels(tmp_path / "whole" / "a.png")).max() <= 1


@pytest.mark.parametrize("measured", [False, True])
def test_a_large_picture_that_is_there_when_a_stop_comes_is_counted(
        run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, measured: bool) -> None:
    replace = os.replace

    def replaced(source: Path, destination: Path) -> None:
        replace(source, destination)
        if Path(destination).name == "a.png":
            signal.raise_signal(signal.SIGINT)

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt
    if measured:
        monkeypatch.setattr(inference.report.Judge, "__call__", stopped)
    else:
        monkeypatch.setattr(utils.files.os, "replace", replaced)
    assert run("-i", noise(tmp_path / "a.png", LARGE), "-o", tmp_path / "out") == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert "1 restored" in capsys.readouterr().out


def test_other_settings_start_afresh(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "a.png")
    assert not folder.prepare({"seed": 0}) and folder.prepare({"seed": 0})
    (folder.path / "left.over").touch()
    assert not folder.prepare({"seed": 1}) and not (folder.path / "left.over").exists()
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_a_failed_large_picture_leaves_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("device lost")
    monkeypatch.setattr(inference.large, "generate_windows", broken)
    assert run("-i", noise(tmp_path / "a.png", LARGE), "-o", tmp_path / "out") == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_ranks_share_files_and_a_large_picture(run, weights: Path, tmp_path: Path) -> None:
    for i in range(7):
        noise(tmp_path / "in" / f"{i}.png", (8 + i, 8), seed=i)
    noise(tmp_path / "in" / "large.png", LARGE)
    (tmp_path / "in" / "broken.png").write_text("no")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "one") == 1
    two, log = tmp_path / "two", tmp_path / "log.jsonl"
    flags = ["-i", str(tmp_path / "in"), "-o", str(two), "--model", str(weights), "--dtype", "fp32",
             "--batch_size", "4", "--log", str(log)]
    killed = start_ranks(flags)
    done = two / ".large.png.part" / "side4.done"
    deadline = time.monotonic() + 120
    while not (done.exists() and done.read_bytes().count(b"\1") > 40) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in killed:
        process.kill()
        process.wait()
    generated = done.read_bytes().count(b"\1")
    assert generated > 40 and not (two / "large.png").exists()
    finished = {p.name: p.stat().st_mtime_ns for p in two.glob("*.png")}
    log.unlink()
    ranks = start_ranks([*flags, "--skip_existing"])
    outputs = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 0]  # because of broken.png; the first speaks for all
    assert "1 failed" in outputs[0] and "restored" not in outputs[1]
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    for path in two.iterdir():
        assert np.abs(pixels(path) - pixels(tmp_path / "one" / path.name)).max() <= 1
        if path.name in finished:
            assert path.stat().st_mtime_ns == finished[path.name]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(Path(record["source"]).name for record in records) == sorted(
        p.name for p in (tmp_path / "in").iterdir())  # every picture once


def test_defaults_are_the_testset_folders(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "testset" / "set" / "LR" / "a.png")
    shutil.copytree(tmp_path / "testset" / "set" / "LR", tmp_path / "testset" / "other" / "LR")
    monkeypatch.setattr(script, "__file__", str(tmp_path / "test_tile.py"))
    assert run() == 0
    for folder in ("set", "other"):
        assert (tmp_path / "testset" / folder / "VARPrediction" / "a.png").exists()


def test_a_retry_has_the_memory_of_what_failed(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of an exception hold what they computed with: a GPU would lack it for what comes next."""
    for name in "ab":
        noise(tmp_path / "in" / f"{name}.png")
    held: list[weakref.ref] = []

    class Activations:
        """As large as they are on a GPU."""

    def failing(*_: object) -> None:
        assert all(each() is None for each in held)
        activations = Activations()
        held.append(weakref.ref(activations))
        raise RuntimeError("device lost")
    monkeypatch.setattr(inference.runner, "generate_windows", failing)
    gc.disable()
    try:
        assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--batch_size", 100) == 1
    finally:
        gc.enable()
    assert len(held) == 3, "both together, then each alone"
