"""test_varsr_fastvar.py as its users run it."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference.large
import inference.runner
import test_varsr as plain_script
import test_varsr_fastvar as script

PRUNE = ("--fastvar", "--fastvar_min_keep", 2, "--fastvar_later_layer_start", 1)


def run(testset: Path, weights: Path, output: str, *flags: object, main=script.main) -> int:
    source = testset / "set" / "LR" / "b.png"
    return main([str(flag) for flag in ("-i", source, "-o", testset / output, "--model", weights, "--dtype", "fp32",
                                        *flags)])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_off_it_is_test_varsr(testset: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(testset, weights, "x") == 0 and run(testset, weights, "y", main=plain_script.main) == 0
    assert (pixels(testset / "x" / "b.png") == pixels(testset / "y" / "b.png")).all()
    assert "FastVAR off" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["separate", "shared"])
def test_the_report_and_the_comparison(testset: Path, weights: Path, mode: str, capsys: pytest.CaptureFixture) -> None:
    sheet = testset / "sheet.png"
    flags = (*PRUNE, "--fastvar_mode", mode, "--compare", "--sheet", sheet, "--export_intermediate")
    assert run(testset, weights, "x", *flags) == 0 and (testset / "x" / "b_scales" / "side4.png").exists()
    printed = capsys.readouterr().out
    assert "side 2: 1 of 2 layers pruned, 3 of 4 tokens" in printed  # 4 - int(4 * 0.4)
    assert "side 4: 1 of 2 layers pruned, 12 of 16 tokens" in printed  # 16 - int(16 * 0.3)
    assert " s saved" in printed and "PSNR-Y between them" in printed and sheet.exists()
    assert run(testset, weights, "y", *PRUNE, "--fastvar_mode", mode, "--fastvar_quiet") == 0
    assert "layers pruned" not in capsys.readouterr().out
    assert (pixels(testset / "x" / "b.png") == pixels(testset / "y" / "b.png")).all()


def test_more_scales_than_two(testset: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(testset, weights, "x", *PRUNE, "--fastvar_ratios", 0, 0.5) == 0
    printed = capsys.readouterr().out
    assert "side 2" not in printed and "8 of 16" in printed
    assert run(testset, weights, "x", *PRUNE, "--fastvar_ratios", 0, 0.5, 0.5) == 1
    assert "at most 2" in capsys.readouterr().err


def test_pictures_after_every_scale(testset: Path, weights: Path) -> None:
    assert run(testset, weights, "x", "--export_intermediate", "--intermediate_max", 1) == 0
    scales = testset / "x" / "b_scales"
    assert sorted(p.name for p in scales.iterdir()) == ["side1.png", "side4.png"]
    assert (pixels(scales / "side4.png") == pixels(testset / "x" / "b.png")).all()
    assert pixels(scales / "side1.png").shape == (36, 48, 3)


@pytest.mark.parametrize("flag", ["--fastvar_last_ratio", "--fastvar_second_last_ratio", "--fastvar_ratios"])
def test_ratios_out_of_range_are_refused(flag: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main([flag, "1.0"])
    assert stop.value.code == 1 and "less than 1" in capsys.readouterr().err


@pytest.mark.parametrize("flag, value, partner", [
    ("fastvar_second_last_ratio", 0, "fastvar"), ("fastvar_last_ratio", 0.5, "fastvar"),
    ("fastvar_ratios", 0.5, "fastvar"), ("fastvar_later_layer_start", 0, "fastvar"),
    ("fastvar_min_keep", 2, "fastvar"), ("fastvar_mode", "shared", "fastvar"), ("sheet_pictures", 2, "sheet"),
    ("intermediate_max", 2, "export_intermediate"), ("uncertainty_samples", 2, "uncertainty"),
    ("lr_noise", 0, "lr_consistency")])
def test_flags_without_their_partner_are_refused(testset: Path, capsys: pytest.CaptureFixture, flag: str,
                                                 value: object, partner: str) -> None:
    assert run(testset, testset, "x", f"--{flag}", value) == 1
    error = capsys.readouterr().err.strip()
    assert error.endswith(f"--{flag} is for --{partner}: give both, or leave it out") and "\n" not in error


@pytest.mark.parametrize("flag", ["--export_intermediate", "--save_tokens", "--uncertainty"])
def test_standard_output_has_no_place_for_more_than_the_picture(testset: Path, capsys: pytest.CaptureFixture,
                                                                flag: str) -> None:
    assert script.main(["-i", str(testset / "set" / "LR" / "b.png"), "-o", "-", "--model", "none", flag]) == 1
    assert f"{flag}: standard output" in capsys.readouterr().err


def test_a_stopped_picture_has_its_scales_afterwards(weights: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    generate = inference.large.generate_windows
    monkeypatch.setattr(inference.runner, "LARGE_WINDOWS", 3)

    def stopped(model, work, settings, batch, progress) -> None:
        generate(model, work[:4], settings, batch, progress)
        raise KeyboardInterrupt
    flags = [str(flag) for flag in ("-i", tmp_path / "a.png", "-o", tmp_path / "out", "--model", weights, "--dtype",
                                    "fp32", "--batch_size", 4)]
    with monkeypatch.context() as patch:
        patch.setattr(inference.large, "generate_windows", stopped)
        assert script.main(flags) == 130
    assert script.main([*flags, "--export_intermediate"]) == 0
    assert list((tmp_path / "out" / "a_scales").iterdir())


def test_transparent_pictures_are_compared_as_they_look(weights: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture) -> None:
    pixels = np.random.default_rng(0).integers(90, 120, (8, 8, 4), dtype=np.uint8)
    pixels[:, :, 3] = 255
    pixels[4:, :, 3] = 0  # white below, where the colours go on as above
    Image.fromarray(pixels).save(tmp_path / "a.png")
    flags = ("-i", tmp_path / "a.png", "-o", tmp_path / "out", "--model", weights, "--dtype", "fp32", "--compare",
             "--fastvar",
             "--fastvar_second_last_ratio", 0, "--fastvar_last_ratio", 0)  # nothing is pruned: the same picture
    assert script.main([str(flag) for flag in flags]) == 0
    said = re.search(r"PSNR-Y between them ([\d.]+|inf) dB", capsys.readouterr().out)
    assert float(said[1]) > 45
