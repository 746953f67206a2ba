"""train_vqvae.py as its users run it: other factors and scales, resume, files to start from, refusals."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
import train_vqvae as script
from models.weights.tokenizer_file import load_tokenizer

SHAPE = ("--preset", "varsr-debug", "--scales", "1,3,4")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (72, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def flags(photos: Path, output: Path, *more: object) -> list[str]:
    common = ("--data", photos, "--output", output, "--max_iters", 8, "--batch_size", 4, "--warmup_iters", 2,
              "--val_batch", 4, "--save_every", 4, "--val_every", 8, "--revive_every", 3, "--precision", "fp32",
              "--device", "cpu", "--perceptual_weight", 0)
    return [str(flag) for flag in (*common, *more)]


def run(photos: Path, output: Path, *more: object) -> int:
    return script.main(flags(photos, output, *more))


def torchrun(line: list[str], processes: int = 2) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                           str(processes), script.__file__, *line], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert run(photos, output, *SHAPE, "--val_data", photos) == 0
    return output


def test_it_leaves_a_tokenizer_its_log_and_a_sheet(finished: Path) -> None:
    model = load_tokenizer(finished / "vqvae.safetensors")
    assert model.config.scales == (1, 3, 4) and model.config.downsampling == 8
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert lines[0]["model"]["scales"] == [1, 3, 4] and lines[0]["perceptual"].startswith("none")
    report = lines[-1]
    assert set(report) >= {"psnr_1", "psnr_3", "psnr_4", "ssim_4", "psnr_continuous", "codes_used", "perplexity"}
    assert {"samples_per_second", "data_wait", "lr", "discriminator"} <= set(lines[-2])
    assert [path.name for path in (finished / "sheets").iterdir()] == ["0000008.png"]
    assert list((finished / "tensorboard").iterdir())


def started_at(folder: Path) -> int:
    """The iteration that the last start of a run went on from: starting over ends with the same bytes too."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["iteration"] for line in lines if line["event"] == "start"][-1]


def test_a_resumed_run_ends_with_the_same_file(finished: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "states").mkdir()
    shutil.copy(finished / "states" / "state-00000004.pt", tmp_path / "states")
    assert run(photos, tmp_path, *SHAPE, "--val_data", photos) == 0
    assert started_at(tmp_path) == 4
    assert (tmp_path / "vqvae.safetensors").read_bytes() == (finished / "vqvae.safetensors").read_bytes()


def test_a_factor_of_six(photos: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path, *SHAPE, "--stem", 3, "--max_iters", 3) == 0
    assert load_tokenizer(tmp_path / "vqvae.safetensors").config.image_size == 24


def test_a_linear_path_starts_at_principal_components(photos: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path, *SHAPE, "--linear_path", "--max_iters", 3, "--lr", 1e-12, "--revive_every", 100) == 0
    model = load_tokenizer(tmp_path / "vqvae.safetensors")
    directions = model.linear_path.analysis.weight.detach().flatten(1)
    products = directions @ directions.T
    assert products[0, 0] > 0
    torch.testing.assert_close(products, products[0, 0] * torch.eye(len(products)), rtol=1e-3, atol=1e-3)
    assert model.decoder.conv_out.weight.abs().max() < 1e-6


def test_a_run_with_a_linear_path_resumes(photos: Path, tmp_path: Path) -> None:
    line = (*SHAPE, "--val_data", photos, "--linear_path")
    assert run(photos, tmp_path / "whole", *line) == 0
    log = [json.loads(text) for text in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[0]["model"]["linear_path"] is True
    (tmp_path / "part" / "states").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "states" / "state-00000004.pt", tmp_path / "part" / "states")
    assert run(photos, tmp_path / "part", *line) == 0
    assert started_at(tmp_path / "part") == 4
    whole, part = (tmp_path / name / "vqvae.safetensors" for name in ("whole", "part"))
    assert whole.read_bytes() == part.read_bytes()
    assert load_tokenizer(whole).config.linear_path


def test_it_goes_on_from_a_file(finished: Path, photos: Path, tmp_path: Path) -> None:
    source = finished / "vqvae.safetensors"
    assert run(photos, tmp_path, "--init", source, "--max_iters", 3, "--lr", 1e-12, "--revive_every", 100) == 0
    before, after = (load_tokenizer(path / "vqvae.safetensors").state_dict() for path in (finished, tmp_path))
    torch.testing.assert_close(after["decoder.conv_out.weight"], before["decoder.conv_out.weight"], atol=1e-6, rtol=0)


def test_the_next_stage_takes_its_scales_from_the_file(finished: Path, photos: Path, tmp_path: Path) -> None:
    line = ("--stage", "sr", "--preset", "varsr-debug", "--vqvae", finished / "vqvae.safetensors", "--data", photos,
             "--val_data", photos, "--output", tmp_path, "--max_iters", 2, "--batch_size", 2, "--fp16", 0, "--wp", 0,
             "--device", "cpu")
    assert train.main([str(flag) for flag in line]) == 0
    report = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert set(report) >= {"psnr_y", "ssim_y", "gmsd", "high_frequency", "psnr_y_bicubic", "accuracy_3",
                           "forced_accuracy_4"}
    assert json.loads((tmp_path / "config.json").read_text())["vqvae"]["scales"] == [1, 3, 4]


@pytest.mark.parametrize("more, said", [
    (("--init", "nowhere.safetensors"), "nowhere.safetensors"), (("--preset", "none"), "unknown preset"),
    ((*SHAPE, "--scales", "4"), "at least two sides"), ((*SHAPE, "--warmup_iters", 9), "warm-up of 9"),
    ((*SHAPE, "--val_data", "nowhere"), "nowhere"), ((*SHAPE, "--data", "nowhere"), "nowhere"),
    ((*SHAPE, "--scales", "1,2,40"), "320x320")])
def test_mistakes_are_told_in_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                       more: tuple, said: str) -> None:
    assert run(photos, tmp_path, *more) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_state_of_another_tokenizer_is_refused(finished: Path, photos: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(finished / "states", tmp_path / "states")
    assert run(photos, tmp_path, *SHAPE, "--vocab_size", 16) == 1
    assert "another shape" in capsys.readouterr().err


def test_flags_as_the_published_command_lines_write_them() -> None:
    parse = script.build_parser().parse_args
    assert parse(["--wandb_flag=True"]).wandb_flag and parse(["--wandb_flag"]).wandb_flag
    assert not parse(["--wandb_flag=False"]).wandb_flag and not parse([]).wandb_flag
    assert parse(["--scales", "1_2_3"]).scales == parse(["--scales", "1,2,3"]).scales == (1, 2, 3)
    for wrong in (["--wandb_flag=perhaps"], ["--scales", "1,two"], ["--batch_size", "0"]):
        with pytest.raises(SystemExit):
            parse(wrong)


@pytest.mark.slow
def test_two_processes_take_the_same_steps(photos: Path, tmp_path: Path) -> None:
    """But for what belongs to a row's place in its batch (rows that stay continuous or lose scales)."""
    same = (*SHAPE, "--continuous_share", 0, "--scale_dropout", 0, "--max_iters", 20, "--adversarial_start", 0.5,
            "--adversary", "patch",
            "--revive_every", 100, "--log_every", 1)
    assert run(photos, tmp_path / "alone", *same, "--batch_size", 4, "--workers", 1) == 0
    finished = torchrun(flags(photos, tmp_path / "two", *same, "--batch_size", 2))
    assert finished.returncode == 0, finished.stderr[-2000:]
    lines = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
             for name in ("two", "alone")]
    two, alone = ([line for line in of_run if line["event"] == "train"] for of_run in lines)
    assert len(two) == 20
    for key, allowed in (("loss", 1e-5), ("discriminator", 1e-4), ("adaptive_weight", 1e-3)):
        values = [[line[key] for line in of_run if key in line] for of_run in (two, alone)]
        assert values[0] == pytest.approx(values[1], rel=allowed), key
    weights, expected = (load_tokenizer(tmp_path / run_name / "vqvae.safetensors").state_dict()
                         for run_name in ("two", "alone"))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_workers_draw_the_same_crops_for_any_number(photos: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        assert run(photos, tmp_path / str(workers), *SHAPE, "--workers", workers, "--max_iters", 3) == 0
    one, two = ((tmp_path / name / "vqvae.safetensors").read_bytes() for name in "12")
    assert one == two


def test_crops_cut_on_the_device_train_the_same_tokenizer(photos: Path, tmp_path: Path,
                                                          resident_crops: list[str]) -> None:
    for name, more in (("host", ()), ("device", ("--data_on_device",))):
        assert run(photos, tmp_path / name, *SHAPE, "--linear_path", "--max_iters", 3, *more) == 0
        assert bool(resident_crops) == (name == "device")
    host, device = ((tmp_path / name / "vqvae.safetensors").read_bytes() for name in ("host", "device"))
    assert host == device


@pytest.mark.parametrize("more, said", [
    (("--minutes", 1), "--max_iters and --minutes"),
    (("--data_on_device", "--workers", 1), "--workers cannot act with --data_on_device")])
def test_flags_that_exclude_each_other(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: tuple,
                                       said: str) -> None:
    with pytest.raises(SystemExit):
        run(photos, tmp_path, *more)
    assert said in capsys.readouterr().err


def test_shape_flags_beside_init_are_refused(finished: Path, photos: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture) -> None:
    assert run(photos, tmp_path, "--init", finished / "vqvae.safetensors", "--vocab_size", 16) == 1
    assert "--vocab_size cannot act with --init" in capsys.readouterr().err
