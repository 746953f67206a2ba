"""Validation against the same things done one by one: generation, metrics, codes, SciPy's blur."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model
from PIL import Image
from scipy.ndimage import gaussian_filter

from dataloader.held_out import HeldOut
from evaluation.metrics.full_reference import gmsd, gray, high_frequency, luma, psnr_y, ssim_y
from models.varsr import VARSR
from training.validation import Validation, ValidationSettings, measure

SEED = 7


@pytest.fixture(scope="module")
def pairs() -> HeldOut:
    target = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return HeldOut(target, torch.nn.functional.avg_pool2d(target, 4))


@pytest.fixture(scope="module")
def validation(pairs: HeldOut) -> Validation:
    return Validation(pairs, ValidationSettings(precision="fp32", batch_size=2, seed=SEED, sheet_rows=3))


def enlarged(pairs: HeldOut) -> torch.Tensor:
    """Pillow's bicubic, in float."""
    rows = [[np.asarray(Image.fromarray(channel.numpy()).resize((32, 32), Image.Resampling.BICUBIC))
             for channel in lr] for lr in pairs.lr]
    return torch.from_numpy(np.array(rows)).clamp(0, 1)


def test_values_are_those_of_the_generated_pictures(model: VARSR, validation: Validation, pairs: HeldOut) -> None:
    values = validation.run(model)
    restored = model.generate(enlarged(pairs), seed=SEED)
    expected = {
        "psnr_y": [psnr_y(a, b) for a, b in zip(restored, pairs.target)],
        "ssim_y": [ssim_y(a, b) for a, b in zip(restored, pairs.target)],
        "gmsd": [gmsd(gray(a), gray(b)) for a, b in zip(restored, pairs.target)]}
    for name, each in expected.items():
        assert values[name] == pytest.approx(sum(each) / len(each), rel=1e-4), name
    bicubic = [psnr_y(a, b) for a, b in zip(enlarged(pairs), pairs.target)]
    assert values["psnr_y_bicubic"] == pytest.approx(sum(bicubic) / len(bicubic))


def test_high_frequency_energy_against_scipy(pairs: HeldOut) -> None:
    plane = luma(pairs.target[0])
    blurred = gaussian_filter(plane.numpy(), 1.5, radius=5)
    expected = np.abs(plane.numpy() - blurred)[5:-5, 5:-5].mean()
    assert high_frequency(plane) == pytest.approx(expected, rel=1e-9)
    soft = torch.nn.functional.avg_pool2d(pairs.target, 3, stride=1, padding=1)
    share = np.mean([high_frequency(luma(a)) for a in soft]) / np.mean([high_frequency(luma(a)) for a in pairs.target])
    assert measure(soft, pairs.target)["high_frequency"] == pytest.approx(share) and share < 0.7


def test_code_accuracies(model: VARSR, validation: Validation, pairs: HeldOut) -> None:
    values = validation.run(model)
    wanted, generated = model.vqvae.tokenize(pairs.target * 2 - 1), []
    model.generate(enlarged(pairs), seed=SEED, on_scale=lambda step: generated.append(step.codes))
    for side, right, codes in zip(model.config.vqvae.scales, wanted, generated):
        assert values[f"accuracy_{side}"] == pytest.approx((right == codes).float().mean().item())
    losses = model(pairs.target * 2 - 1, enlarged(pairs) * 2 - 1, torch.zeros(5, dtype=torch.long))
    tokens = [side * side for side in model.config.vqvae.scales]
    forced = sum(values[f"forced_accuracy_{side}"] * count for side, count in zip(model.config.vqvae.scales, tokens))
    assert forced / sum(tokens) == pytest.approx(losses.accuracy.item(), abs=1e-6)


def test_a_perfect_model_is_perfect(pairs: HeldOut) -> None:
    values = measure(pairs.target, pairs.target)
    assert values["psnr_y"] == float("inf") and values["ssim_y"] == pytest.approx(1) and values["gmsd"] < 1e-6
    assert values["high_frequency"] == 1


def test_the_sheet_and_nothing_else_changes(validation: Validation, tmp_path: Path) -> None:
    model = small_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    validation.run(model, tmp_path / "sheets" / "1.png")
    assert torch.equal(torch.get_rng_state(), random)  # a training goes on as if nothing had been
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with Image.open(tmp_path / "sheets" / "1.png") as sheet:
        assert sheet.width > sheet.height / 3 * 1.2  # four columns, three rows of picture and detail
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["1.png"]


def test_a_sheet_that_cannot_be_written_costs_itself(validation: Validation, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert "psnr_y" in validation.run(small_model(), tmp_path / "sheets" / "1.png")
    assert "make room" in caplog.text and not list((tmp_path / "sheets").iterdir())
