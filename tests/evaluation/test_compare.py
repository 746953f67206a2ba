"""evaluate.py as its users run it: partners, protocols, tables, manifest, failures."""
from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_pairs import pair
from PIL import Image
from pyiqa_stub import Folders, stand_in

import evaluate as script
import evaluation.compare
import test_varsr
from evaluation.compare import estimate
from evaluation.protocols import PROTOCOLS
from pictures.rgb import write_image

ROOT = Path(__file__).resolve().parents[2]


def run(*flags: object) -> int:
    return script.main([str(flag) for flag in flags])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture()
def folders(tmp_path: Path) -> Path:
    """Two methods' results, HR and LR of the pictures a and b; `good` is the original itself for b."""
    for name, index in (("a", 1), ("b", 2)):
        image, reference = (part[:, :100, :104] for part in pair(index))
        write_image(tmp_path / "HR" / f"{name}.png", reference)
        write_image(tmp_path / "bad" / f"{name}.png", image)
        write_image(tmp_path / "good" / f"{name}.png", reference if name == "b" else image)
        write_image(tmp_path / "LR" / f"{name}.png", reference[:, ::4, ::4])
    return tmp_path


def test_methods_side_by_side(folders: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ("--results", folders / "bad", folders / "good", "--names", "x<y", "z", "--hr", folders / "HR", "--lr",
             folders / "LR", "--output", folders / "out")
    assert run(*flags) == 0
    table = rows(folders / "out" / "metrics.csv")
    assert [(row["method"], row["picture"]) for row in table] == [
        (method, name) for method in ("bicubic", "x<y", "z") for name in "ab"]
    assert table[5]["psnr_y"] == "inf" and float(table[5]["ssim_y"]) == pytest.approx(1)
    assert table[2]["psnr_y"] == table[4]["psnr_y"] != table[0]["psnr_y"]
    assert "ms_ssim" not in table[0]  # too small for five scales
    summary = {(row["method"], row["metric"]): row for row in rows(folders / "out" / "summary.csv")}
    values = [float(row["gmsd"]) for row in table if row["method"] == "x<y"]
    assert float(summary["x<y", "gmsd"]["mean"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert {float(summary["x<y", "gmsd"][end]) for end in ("low", "high")} == set(values)
    printed = capsys.readouterr().out
    assert "BT.601 Y in 16..235" in printed and "pictures measured: bicubic 2, x<y 2, z 2; 0 left out" in printed


def test_the_manifest_traces_every_file(folders: Path) -> None:
    assert run("--results", folders / "bad", "--hr", folders / "HR", "--output", folders / "out", "--protocol",
               "basicsr-y") == 0
    manifest = json.loads((folders / "out" / "manifest.json").read_text())

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["inputs"]["hr"]["sha256"] == {f"{n}.png": digest(folders / "HR" / f"{n}.png") for n in "ab"}
    assert manifest["outputs"] == {name: digest(folders / "out" / name)
                                   for name in ("metrics.csv", "summary.csv", "report.html")}
    assert manifest["protocol"]["metrics"][0]["crop"] == 4 and "torch" in manifest["versions"]


def test_without_originals_only_what_needs_none(folders: Path) -> None:
    assert run("--results", folders / "bad", "--output", folders / "out") == 0
    assert {*rows(folders / "out" / "metrics.csv")[0]} <= {"method", "picture", "piqe", "niqe", "musiq", "maniqa",
                                                         "clipiqa"}


def test_what_has_no_partner_is_named_and_the_rest_goes_on(folders: Path, capsys: pytest.CaptureFixture) -> None:
    (folders / "good" / "a.png").unlink()
    (folders / "HR" / "b.png").unlink()
    for name, content in (("c", Image.new("RGB", (20, 20))), ("d", Image.new("RGB", (30, 20)))):
        content.save(folders / "bad" / f"{name}.png")
        Image.new("RGB", (20, 20)).save(folders / "HR" / f"{name}.png")
    (folders / "HR" / "e.png").write_bytes(b"nonsense")
    Image.new("RGB", (20, 20)).save(folders / "bad" / "e.png")
    assert run("--results", folders / "bad", folders / "good", "--hr", folders / "HR", "--output",
               folders / "out") == 1
    printed = capsys.readouterr().out
    left_out = [line for line in printed.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 7 and "7 left out" in printed and "bad 2" in printed
    for said in ("good/a", "HR/b", "good/c", "good/d", "good/e", "d.png: picture 30x20 and reference 20x20", "e.png"):
        assert any(said in line for line in left_out), said
    assert [row["picture"] for row in rows(folders / "out" / "metrics.csv")] == ["a", "c"]


@pytest.mark.parametrize("flags, said", [
    (("--results", "nowhere"), "nowhere: no such folder"), (("--results", "."), "no pictures"),
    (("--results", "HR", "--names", "a", "b"), "2 names for 1"),
    (("--results", "HR", "bad", "--names", "a", "a"), "must differ"),
    (("--results", "HR", "--lr", "LR", "--names", "bicubic"), "bicubic is taken"),
])
def test_mistakes_are_one_line(folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
                               flags: tuple, said: str) -> None:
    monkeypatch.chdir(folders)
    assert run(*flags) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and not (folders / "evaluation").exists()


def test_restoring_and_evaluating_give_the_same_figures(weights: Path, testset: Path) -> None:
    (testset / "set" / "LR" / "broken.png").unlink()
    out = testset / "out"
    assert test_varsr.main([str(flag) for flag in ("-i", testset / "set" / "LR", "-o", out, "--model", weights,
                                                   "--dtype", "fp32")]) == 0
    (out / "b.png").unlink()  # has no original
    assert run("--results", out, "--hr", testset / "set" / "HR", "--output", testset / "ev") == 0
    restoring, evaluating = rows(out / "metrics.csv")[0], rows(testset / "ev" / "metrics.csv")[0]
    assert restoring.pop("picture") == "a.png"
    assert restoring.items() <= evaluating.items()


def test_maps_of_expected_errors_are_no_results(folders: Path, capsys: pytest.CaptureFixture) -> None:
    """With or without originals; a picture that is merely called so is one."""
    (folders / "bad" / "b.png").rename(folders / "bad" / "b.tif")
    for name in ("a_uncertainty.png", "b_uncertainty.png", "c_uncertainty.png"):
        Image.new("I;16", (104, 100)).save(folders / "bad" / name)
    assert run("--results", folders / "bad", "--output", folders / "out") == 0
    assert [row["picture"] for row in rows(folders / "out" / "metrics.csv")] == ["a", "b", "c_uncertainty"]
    (folders / "bad" / "c_uncertainty.png").unlink()
    assert run("--results", folders / "bad", "--hr", folders / "HR", "--output", folders / "out") == 0
    assert [row["picture"] for row in rows(folders / "out" / "metrics.csv")] == ["a", "b"]
    assert capsys.readouterr().out.count("; 0 left out") == 2


def contents(folder: Path, *names: str) -> list[bytes]:
    return sorted((folder / name).read_bytes() for name in names)


@pytest.mark.parametrize("links", [True, False])
def test_fid_is_of_the_pairs_that_were_measured(folders: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Neither of what lies beside or below results, nor of pictures without a partner."""
    fid = Folders()
    stand_in(monkeypatch, fid=fid)
    if not links:
        monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (folders / "good" / "b.png").rename(folders / "good" / "b.PNG")
    for place in ("bad/a_scales/side1.png", "bad/alone.png", "bad/sheets/sheet.jpg", "HR/unused.png", "HR/x/a.png"):
        write_image(folders / place, torch.rand(3, 24, 24))
    assert run("--results", folders / "bad", folders / "good", "--hr", folders / "HR", "--output", folders / "out") == 1
    originals = contents(folders / "HR", "a.png", "b.png")
    assert fid.seen == [(contents(folders / "bad", "a.png", "b.png"), originals),
                        (contents(folders / "good", "a.png", "b.PNG"), originals)]
    summary = {(row["method"], row["metric"]): row["mean"] for row in rows(folders / "out" / "summary.csv")}
    assert float(summary["bad", "fid"]) == float(summary["good", "fid"]) == 7.5


@pytest.mark.parametrize("error", [ValueError("too small"), RuntimeError("size mismatch"),
                                   torch.OutOfMemoryError("out of memory\nsee the manual")])
def test_a_learned_metric_that_fails_costs_a_picture_nothing_else(
        folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    measured = iter((0.25, error))

    def lpips(image: torch.Tensor, reference: torch.Tensor) -> float:
        assert image.shape == reference.shape == (1, 3, 100, 104)
        if isinstance(value := next(measured), Exception):
            raise value
        return value
    stand_in(monkeypatch, lpips=lpips, dists=lambda *_: torch.tensor(0.5))
    assert run("--results", folders / "bad", "--hr", folders / "HR", "--output", folders / "out") == 0
    first, second = rows(folders / "out" / "metrics.csv")
    assert float(first["lpips"]) == 0.25 and second["lpips"] == "" and float(second["psnr_y"]) > 0
    assert float(first["dists"]) == float(second["dists"]) == 0.5
    said = [line for line in caplog.messages if "LPIPS" in line and str(error).splitlines()[0] in line]
    assert len(said) == 1 and "\n" not in said[0]


def test_every_protocol_pins_its_variants() -> None:
    for protocol in PROTOCOLS.values():
        assert all(metric.column in protocol.describe() and metric.variant for metric in protocol.metrics)
        assert len({metric.column for metric in protocol.metrics}) == len(protocol.metrics)


def test_bootstrap_intervals_cover_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    samples = random.normal(3, 1, (300, 40))
    covered = [e.low <= 3 <= e.high for e in (estimate(sample, resamples=400) for sample in samples)]
    assert 0.88 < np.mean(covered) < 0.98
    assert estimate(samples[0]) == estimate(samples[0])


def test_bootstrap_of_one_value_and_of_infinite_ones() -> None:
    assert estimate([2.5]).low is None and estimate([2.5]).mean == 2.5
    infinite = estimate([30.0, math.inf])
    assert infinite.mean == math.inf and infinite.low == 30 and infinite.high == math.inf
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_the_table_is_printed_in_any_terminal(folders: Path, environment: dict[str, str]) -> None:
    for folder in ("bad", "HR"):
        (folders / folder / "a.png").rename(folders / folder / os.fsdecode(b"caf\xe9 \xe9\x94\xaa.png"))
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--results", folders / "bad", "--hr", folders / "HR",
                           "--output", folders / "out", "--protocol", "basicsr-y"], capture_output=True, check=False,
                          env={**os.environ, **environment})
    assert done.returncode == 0 and b"PSNR" in done.stdout and b"Traceback" not in done.stderr, done
    assert "caf\\udce9" in (folders / "out" / "metrics.csv").read_text(encoding="utf-8")


def test_lr_names_of_data_sets_find_their_originals(folders: Path) -> None:
    for folder in ("LR", "bad"):
        for name in "ab":
            (folders / folder / f"{name}.png").rename(folders / folder / f"{name}x4.png")
    assert run("--results", folders / "bad", "--hr", folders / "HR", "--lr", folders / "LR", "--output",
               folders / "out") == 0
    found = {(row["method"], row["picture"]) for row in rows(folders / "out" / "metrics.csv")}
    assert found == {(method, name) for method in ("bicubic", "bad") for name in "ab"}


def test_an_output_that_is_a_file_is_found_out_first(folders: Path, capsys: pytest.CaptureFixture,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "out").touch()
    monkeypatch.setattr("evaluation.run.Evaluator", lambda *_: pytest.fail("too late"))
    assert run("--results", folders / "bad", "--output", folders / "out") == 1
    assert "--output" in capsys.readouterr().err


def test_a_stop_writes_what_is_measured(folders: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture) -> None:
    measure = evaluation.compare.Evaluator._measure

    def stopped(self, name: str, *rest: object) -> None:
        if name == "b":
            raise KeyboardInterrupt
        measure(self, name, *rest)
    monkeypatch.setattr(evaluation.compare.Evaluator, "_measure", stopped)
    assert run("--results", folders / "bad", "--hr", folders / "HR", "--output", folders / "out") == 130
    assert [row["picture"] for row in rows(folders / "out" / "metrics.csv")] == ["a"]
    assert "stopped" in capsys.readouterr().out
