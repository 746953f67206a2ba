"""Fitting an error model to errors whose law is known, and the command that does so for a model."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import calibration.__main__ as command
import calibration.fit
import test_tile as script
from calibration.degradations import PERIOD, CropDegradation
from calibration.examples import Example, blurred, example, luma_error, random_crops
from calibration.fit import FitConfig, expected, fitted_head, quantile
from inference.restore import restore_with_errors
from inference.settings import RestoreSettings, UncertaintySettings, calibration_of
from inference.uncertainty import input_names
from models.config import GenerationConfig
from models.error_model import FOLDER_FILE, ErrorHead, load_calibration
from models.varsr import VARSR
from tests.conftest import noise_picture

QUICK = FitConfig(iterations=400, batch=1024)
SIDE = 48


def drawn(count: int, seed: int) -> list[Example]:
    """Examples whose error is uniform in [0, 2 scale], the scale exp(0.7 first input + 1); the second says nothing."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        inputs = torch.randn(2, SIDE // 2, SIDE // 2, generator=generator)
        inputs[0] += 0.3 * torch.randn((), generator=generator)
        scale = (0.7 * inputs[0] + 1).exp()
        fine = scale.repeat_interleave(2, 0).repeat_interleave(2, 1)
        error = fine * 2 * torch.rand(SIDE, SIDE, generator=generator)
        nothing = torch.zeros(3, SIDE, SIDE)
        found.append(Example(inputs, error, error, nothing, nothing, None))
    return found


def covered(head: ErrorHead, found: Sequence[Example]) -> float:
    """The share of their pixels that is within the band."""
    inside = [(each.error <= head.within(expected(head, each))).flatten() for each in found]
    return float(torch.cat(inside).float().mean())


def test_the_expectation_is_right_and_the_band_holds_on_new_draws() -> None:
    config = dataclasses.replace(QUICK, jitter=0.0)
    head = fitted_head(drawn(40, 0), 2, config)
    new = drawn(40, 1)
    grid = torch.stack([torch.linspace(-1.5, 1.5, 25), torch.zeros(25)])[:, None]
    ratio = head(grid)[0] / (0.7 * grid[0, 0] + 1).exp()
    assert float((ratio.log().abs()).max()) < 0.1 and float(ratio.log().abs().mean()) < 0.04
    assert abs(covered(head, new) - config.coverage) < 0.02
    assert not any(each.requires_grad for each in head.parameters())
    strange = [head.strangeness(each.inputs.flatten(1).mean(1)) for each in new]
    assert sum(value > 1 for value in strange) <= 4
    assert head.strangeness(new[0].inputs.flatten(1).mean(1) + 5) > 3


def test_the_band_is_of_all_kinds_of_crops() -> None:
    """Every fourth crop has ten times the error, which the inputs do not tell."""
    def mixed(seed: int) -> list[Example]:
        found = drawn(80, seed)
        return [each if i % 4 else dataclasses.replace(each, error=10 * each.error) for i, each in enumerate(found)]
    head = fitted_head(mixed(0), 2, QUICK)
    assert abs(covered(head, mixed(1)) - QUICK.coverage) < 0.04


def test_the_band_is_of_crops_that_were_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come first in every four have ten times the error: the head never sees them, the band does."""
    monkeypatch.setattr(torch, "randperm", torch.arange)
    found = drawn(16, 0)
    for i in range(0, 16, QUICK.held_out):
        found[i] = dataclasses.replace(found[i], error=10 * found[i].error, blurred=10 * found[i].blurred)
    head, plain = (fitted_head(some, 2, dataclasses.replace(QUICK, iterations=60)) for some in (found, drawn(16, 0)))
    inputs = torch.randn(2, 3, 3)
    torch.testing.assert_close(head(inputs), plain(inputs))
    torch.testing.assert_close(head.band, 10 * plain.band)


def test_the_band_makes_up_for_a_wrong_expectation() -> None:
    """What is learnt is ten times too much: the band makes up for it."""
    found = drawn(40, 0)
    wrong = [dataclasses.replace(each, blurred=10 * each.blurred) for each in found]
    plain, taught = (fitted_head(some, 2, QUICK) for some in (found, wrong))
    inputs = torch.zeros(2, 1, 1)
    assert float(taught(inputs)) > 3 * float(plain(inputs)) and float(taught.band) < float(plain.band) / 3
    assert all(abs(covered(head, drawn(40, 2)) - QUICK.coverage) < 0.03 for head in (plain, taught))


def test_the_same_seed_gives_the_same_head() -> None:
    config = dataclasses.replace(QUICK, iterations=20)
    heads = [fitted_head(drawn(8, 0), 2, config, seed) for seed in (0, 0, 1)]
    same = [all(map(torch.equal, heads[0].state_dict().values(), other.state_dict().values())) for other in heads[1:]]
    assert same == [True, False]


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 500])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_quantiles(count: int, share: float) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    found = float(quantile(values, share))
    rank = min(int(np.ceil(np.float32(share * (count + 1)))), count)  # of conformal prediction
    assert found == float(values.sort().values[rank - 1])
    plain = np.quantile(values.numpy(), min(share * (count + 1) / count, 1.0), method="inverted_cdf")
    assert np.isclose(found, plain) or count < 20
    assert float((values <= found).float().mean()) >= min(share, 1 - 1e-6) - 1e-6


def test_blur_keeps_means_and_edges() -> None:
    plane = torch.zeros(40, 40)
    plane[20, 20] = 1.0
    soft = blurred(plane)
    assert abs(float(soft.sum()) - 1) < 1e-5 and float(soft.max()) == float(soft[20, 20])
    rows = torch.arange(40) - 20.0
    assert abs(float((soft.sum(1) * rows.square()).sum().sqrt()) - 3) < 0.1
    torch.testing.assert_close(blurred(torch.full((12, 9), 7.0)), torch.full((12, 9), 7.0))


def test_errors_are_of_luma() -> None:
    black = torch.zeros(3, 2, 2)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        other = black.clone()
        other[channel] = 1.0
        torch.testing.assert_close(luma_error(other, black), torch.full((2, 2), 255 * weight), atol=0.1, rtol=0)


@pytest.mark.parametrize("samples", [0, 2])
def test_an_example_has_the_inputs_that_a_map_has(model: VARSR, samples: int) -> None:
    """What is learned from is what the head is given later."""
    lr, hr = torch.rand(3, 12, 12), torch.rand(3, 48, 48)
    wanted = RestoreSettings(GenerationConfig(cfg=1.0), uncertainty=UncertaintySettings(samples))
    found = example(model, hr, lr, wanted)
    restored, _, error = restore_with_errors(model, lr, wanted)
    assert torch.equal(found.result, restored) and (found.spread is None) == (samples == 0)
    torch.testing.assert_close(found.error, luma_error(restored, hr))
    names = input_names(model.config)["several" if samples else "one"]
    assert len(found.inputs) == len(names) and found.coarse.shape == found.inputs.shape[1:] == (24, 24)
    torch.testing.assert_close(found.inputs.flatten(1).mean(1), error.total / error.pixels, atol=1e-3, rtol=1e-3)


# ---- the command ----

@pytest.fixture()
def photographs(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        noise_picture(120, 110, i).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def call(*flags: object) -> int:
    return command.main([str(flag) for flag in flags])


def test_the_command_writes_what_uncertainty_uses(weights: Path, photographs: Path, tmp_path: Path, model: VARSR,
                                                  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(calibration.fit, "FitConfig", lambda: dataclasses.replace(QUICK, iterations=5))
    other = tmp_path / "more"
    other.mkdir()
    noise_picture(100, 130, 5).save(other / "a.png")
    flags = ("--data", photographs, other, "--model", weights, "--dtype", "fp32", "--crops", 40, "--samples", 1)
    try:
        assert call(*flags) == 0
        assert str(weights / FOLDER_FILE) in capsys.readouterr().out
        first = calibration_of(weights, model.config)
        assert first.fitted.crops == 40 and first.fitted.data == "photos, more"
        assert set(first.heads) == {"one", "several"}
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
        caplog.clear()
        for more in ((), ("--uncertainty_samples", "1")):
            assert script.main(["-i", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--model", str(weights),
                                "--dtype", "fp32", "--uncertainty", *more]) == 0
        with Image.open(tmp_path / "out" / "a_uncertainty.png") as picture:
            assert "40 crops of photos, more" in str(picture.info) and "uncalibrated" not in str(picture.info)
        assert not any("uncalibrated" in record.getMessage() for record in caplog.records)
        assert call(*flags, "--output", tmp_path / "new" / "other.safetensors") == 0  # the same again, elsewhere
        again = load_calibration(tmp_path / "new" / "other.safetensors", first.fitted.model, input_names(model.config))
        assert again.digest == first.digest and again.fitted == first.fitted
    finally:
        (weights / FOLDER_FILE).unlink(missing_ok=True)


@pytest.mark.parametrize("data, words", [("nowhere", "no such folder"), ("empty", "empty"), ("small", "small"),
                                         ("text.txt", "text.txt")])
def test_bad_data_is_one_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture, data: str,
                              words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "small").mkdir()
    noise_picture(20, 20).save(tmp_path / "small" / "a.png")
    (tmp_path / "text.txt").write_text("nothing.png\n")
    assert call("--data", tmp_path / data, "--model", weights, "--crops", 40) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1:]
    assert error and words in error[0] and "Traceback" not in error[0]
    assert not (weights / FOLDER_FILE).exists()


@pytest.mark.parametrize("place", ["folder", "file.txt/x.safetensors"])
def test_where_nothing_can_be_written_is_told_before_the_work(weights: Path, photographs: Path, tmp_path: Path,
                                                              place: str, monkeypatch: pytest.MonkeyPatch,
                                                              capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    monkeypatch.setattr("inference.settings.load_model", lambda args: pytest.fail("too late"))
    assert call("--data", photographs, "--model", weights, "--output", tmp_path / place) == 1
    error = capsys.readouterr().err.strip()
    assert "--output" in error and "\n" not in error and os.listdir(tmp_path / "folder") == []


def test_degraded_crops_are_reproducible_and_of_every_kind() -> None:
    hr = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    hr[:, :, 24:] = 0.5
    degrade, again = CropDegradation(4.0, 3), CropDegradation(4.0, 3)
    found: list[Tensor] = [degrade(i, hr) for i in range(32)]
    assert all(each.shape == (3, 12, 12) and float(each.min()) >= 0 and float(each.max()) <= 1 for each in found)
    assert all(torch.equal(each, again(i, hr)) for i, each in enumerate(found))
    assert all((each * 255 - (each * 255).round()).abs().max() < 1e-3 for each in found)
    reduced = F.interpolate(hr[None], scale_factor=0.25, mode="bicubic", antialias=True)[0]
    assert torch.equal(found[0], found[4]) and float((found[0] - reduced).abs().max()) < 3 / 255
    blurred, noisy, jpeg, webp = (found[i::16] for i in (1, 5, 9, 13))
    sharp, flat = float(reduced[:, :, :4].std()), float(reduced[:, 2:10, 9:].std())
    for each in blurred:
        assert float(each[:, :, :4].std()) < sharp and float(each[:, 2:10, 9:].std()) < flat + 1e-3
    assert all(float(each[:, 2:10, 9:].std()) > 1.5 / 255 for each in noisy)
    assert all(0.5 / 255 < float((each - found[0]).abs().max()) < 0.5 for each in (*jpeg, *webp))
    assert len({tuple(each.flatten().tolist()) for each in found}) == 25  # the eight reduced ones are alike


@pytest.mark.parametrize("folders", [2, 3, 4])
def test_every_folder_meets_every_degradation(tmp_path: Path, folders: int) -> None:
    for shade in range(folders):
        (tmp_path / str(shade)).mkdir()
        Image.new("RGB", (64, 64), (shade,) * 3).save(tmp_path / str(shade) / "a.png")
    count = PERIOD * folders
    crops = random_crops([tmp_path / str(shade) for shade in range(folders)], 32, count, 0)
    met = {(round(float(crop[0, 0, 0]) * 255), number % PERIOD) for number, crop in enumerate(crops)}
    assert len(met) == count
