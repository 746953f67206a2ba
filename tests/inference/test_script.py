"""test_varsr.py as its users run it: folders, failures, metrics, refusals."""
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import small_class_model
from PIL import Image

import test_varsr as script
from models.weights.save import save_pretrained

ROOT = Path(__file__).resolve().parents[2]


def run(*flags: object) -> int:
    return script.main([str(flag) for flag in flags])


def test_a_folder_with_a_broken_file(weights: Path, testset: Path, capsys: pytest.CaptureFixture) -> None:
    out, sheet = testset / "out", testset / "sheet.png"
    code = run("-i", testset / "set" / "LR", "-o", out, "--model", weights, "--dtype", "fp32", "--sheet", sheet)
    assert code == 1  # because of broken.png, which did not stop the others
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png", "metrics.csv"]
    assert Image.open(out / "b.png").size == (48, 36) and Image.open(sheet).width > 600
    printed = capsys.readouterr().out
    assert "2 restored" in printed and "1 failed" in printed and "broken.png" in printed and str(weights) in printed
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == ["a.png", "mean"]
    assert 0 < float(rows[0]["psnr_y"]) < 60 and rows[0]["psnr_y"] == rows[1]["psnr_y"]


def test_same_flags_same_bytes_and_skipping(weights: Path, testset: Path, capsys: pytest.CaptureFixture) -> None:
    source = testset / "set" / "LR" / "b.png"
    flags = ("-i", source, "--model", weights, "--seed", 3, "--top_k", 5, "--cfg", 1, "--dtype", "fp32")
    assert run(*flags, "-o", testset / "x") == 0 and run(*flags, "-o", testset / "y", "--batch_size", 1) == 0
    first, second = (np.asarray(Image.open(testset / f / "b.png"), dtype=int) for f in "xy")
    assert np.abs(first - second).max() <= 1
    before = (testset / "x" / "b.png").stat().st_mtime_ns
    assert run(*flags, "-o", testset / "x", "--skip_existing") == 0
    assert (testset / "x" / "b.png").stat().st_mtime_ns == before and "1 skipped" in capsys.readouterr().out


def test_the_default_layout(weights: Path, testset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (testset / "set" / "LR" / "broken.png").unlink()
    (testset / "set").rename(testset / "mine")
    (testset / "testset").mkdir()
    (testset / "mine").rename(testset / "testset" / "mine")
    monkeypatch.setattr(script, "__file__", str(testset / "test_varsr.py"))
    assert run("--model", weights, "--dtype", "fp32") == 0
    results = testset / "testset" / "mine" / "VARPrediction"
    assert sorted(p.name for p in results.iterdir()) == ["a.png", "b.png", "metrics.csv"]


@pytest.mark.parametrize("flags, said", [
    (("-i", "nowhere"), "nowhere"), (("-i", "LR", "--model", "/no/such/model"), "/no/such/model"),
    (("-o", "out"), "--input"), (("-i", "LR", "--device", "tpu9"), "tpu9"),
])
def test_mistakes_are_one_line(testset: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
                               flags: tuple, said: str) -> None:
    monkeypatch.chdir(testset / "set")
    assert run(*flags) == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_class_to_image_model_is_refused(testset: Path, capsys: pytest.CaptureFixture) -> None:
    save_pretrained(small_class_model(), testset / "c2i")
    assert run("-i", testset / "set" / "LR", "-o", testset / "out", "--model", testset / "c2i") == 1
    error = capsys.readouterr().err.strip()
    assert "class-to-image" in error and "\n" not in error and not (testset / "out").exists()


@pytest.mark.parametrize("flag, value", [("--cfg", "-1"), ("--top_p", "0"), ("--top_k", "-2"), ("--batch_size", "0"),
                                         ("--scale", "0.5"), ("--dtype", "int3")])
def test_flags_out_of_range_are_refused(flag: str, value: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        run(flag, value)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 1 and flag in error and "\n" not in error


def test_two_pictures_with_one_result_name(testset: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (8, 8)).save(testset / "set" / "LR" / "a.jpg")
    assert run("-i", testset / "set" / "LR", "-o", testset / "out", "--model", weights) == 1
    assert "both be written" in capsys.readouterr().err and not (testset / "out").exists()
