"""What a class-to-image training reports: every scale, known crops beside held-out ones, and its sheet."""
from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_class_model
from PIL import Image
from stages import CPU, ClassBlobs, class_stage

from dataloader.pairs import BatchLoader, ClassSource, Pairs
from models.varsr import VARSR
from training.class_validation import ClassValidation

GAP = 2  # pixels between the sheet's pictures


def crops(count: int, seed: int) -> Pairs:
    return ClassSource(BatchLoader(ClassBlobs(), count, seed=seed)).draw(CPU)


def draws(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = small_class_model().config
    repeats, tokens = config.refiner.repeats, config.vqvae.side ** 2
    noise = torch.stack([torch.randn(repeats, tokens, config.vqvae.latent_channels,
                                     generator=torch.Generator().manual_seed(position))
                         for position in range(first, first + count)], 1)
    return torch.full((repeats * count * tokens,), 300), noise.flatten(0, 2)


def by_hand(model: VARSR, pairs: Pairs) -> dict[str, float]:
    """Token by token, from the probabilities."""
    quantized = model.vqvae.quantizer.encode(model.vqvae.encode(pairs.target))
    _, logits = model.transformer(pairs.labels, quantized.inputs, None)
    found: dict[str, list[float]] = {}
    place = 0
    for side, codes in zip(model.config.vqvae.scales, quantized.codes, strict=True):
        for k in range(side * side):
            chances = F.softmax(logits[:, place + k], dim=-1)
            for row, code in zip(chances, codes[:, k].tolist(), strict=True):
                for end in ("", f"_{side}"):
                    found.setdefault("cross_entropy" + end, []).append(-math.log(row[code]))
                    found.setdefault("accuracy" + end, []).append(float(row.argmax() == code))
        place += side * side
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("batch", [3, 8])
def test_every_scale_is_measured_whatever_the_batch(batch: int, tmp_path: Path) -> None:
    model, held_out, training = small_class_model(), crops(8, seed=1), crops(8, seed=2)
    validation = ClassValidation(held_out, training, draws, "fp32", batch)
    found = validation.run(model, tmp_path / "sheet.png")
    with torch.no_grad():
        expected, known = by_hand(model, held_out), by_hand(model, training)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["training_cross_entropy"] == pytest.approx(known["cross_entropy"], rel=1e-4)
    assert found["training_accuracy"] == pytest.approx(known["accuracy"], rel=1e-4)
    whole = model(held_out.target, None, held_out.labels, refiner_times=draws(0, 8)[0], refiner_noise=draws(0, 8)[1])
    assert found["refiner"] == pytest.approx(whole.refiner.item(), rel=1e-4)


def test_the_sheet_has_guided_rows_above_unguided_ones(tmp_path: Path) -> None:
    model = small_class_model()
    ClassValidation(crops(3, seed=1), None, draws, "fp32").run(model, tmp_path / "sheet.png")
    size = model.config.image_size
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    assert pixels.shape == (4 * (size + GAP), 3 * (size + GAP), 3)
    options = model.config.generation
    assert options.cfg > 0
    for row, cfg in ((0, options.cfg), (2, 0.0)):
        expected = model.generate(labels=torch.arange(3), seed=0, options=dataclasses.replace(options, cfg=cfg))
        for label in range(3):
            top, left = row * (size + GAP), label * (size + GAP)
            shown = pixels[top:top + size, left:left + size]
            assert np.abs(shown - expected[label].permute(1, 2, 0).numpy() * 255).max() <= 1


def test_the_training_log_has_every_scale(tmp_path: Path) -> None:
    """The mean over tokens of the scales' values is the value of all."""
    stage = class_stage()
    step = stage.train_step(0)
    sides = stage.model.config.vqvae.scales
    for name in ("cross_entropy", "accuracy"):
        mean = sum(step[f"{name}_{side}"] * side * side for side in sides) / sum(side * side for side in sides)
        assert mean == pytest.approx(step[name], rel=1e-4)
    report = stage.report(tmp_path, 1)
    assert report["cross_entropy"] > 0 and (tmp_path / "sheets" / "0000001.png").is_file()
