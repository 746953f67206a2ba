"""Held-out pictures: windows that belong together, the same in every run."""
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dataloader.held_out import HeldOut, held_out, held_out_crops, pairs_of_folder

SIZE = 16


def ramp(width: int, height: int, scale: int = 1) -> np.ndarray:
    """Red tells the column, green the row, of the picture that is `scale` times smaller."""
    y, x = np.mgrid[:height, :width] // scale
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    for name in ("LR", "HR"):
        (tmp_path / name).mkdir()
    for name, width, height in (("a", 13, 9), ("b", 8, 8)):
        Image.fromarray(ramp(width, height)).save(tmp_path / "LR" / f"{name}.png")
        Image.fromarray(ramp(4 * width, 4 * height, 4)).save(tmp_path / "HR" / f"{name}.png")
    return tmp_path


def halved(hr: Tensor, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.avg_pool2d(hr, 2) + 0.1 * torch.rand(1, generator=generator)


def test_pictures_are_found_below_a_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outer = tmp_path_factory.mktemp("outer")
    (outer / "deep").mkdir()
    (folder / "HR").rename(outer / "deep" / "er")
    assert len(held_out_crops(outer, SIZE, 100)) == 3 * 2 + 2 * 2


def test_lr_and_hr_windows_show_the_same_place(folder: Path) -> None:
    pairs = pairs_of_folder(folder, SIZE, 100)
    assert len(pairs.target) == 3 * 2 + 2 * 2  # windows side by side of 52x36 and 32x32 pixels
    assert pairs.target.shape[1:] == (3, SIZE, SIZE) and pairs.lr.shape[1:] == (3, 4, 4)
    assert torch.equal(pairs.target[:, :, ::4, ::4], pairs.lr)
    assert len({tuple(lr[:2, 0, 0].tolist()) for lr in pairs.lr[:6]}) == 6


def test_few_windows_come_from_all_pictures(folder: Path) -> None:
    chosen = held_out_crops(folder, SIZE, 4)
    everything = held_out_crops(folder / "HR", SIZE, 100)
    assert torch.equal(chosen, everything[[0, 2, 5, 7]])


def test_plain_pictures_are_degraded_alike_in_every_run(folder: Path) -> None:
    first, second = (held_out(str(folder / "HR"), SIZE, 5, halved) for _ in range(2))
    assert torch.equal(first.lr, second.lr) and first.lr.shape[-1] == SIZE // 2
    assert torch.equal(first.target, held_out_crops(folder / "HR", SIZE, 5))


def test_without_a_folder_training_crops_serve(caplog: pytest.LogCaptureFixture) -> None:
    class Crops:
        def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
            return np.random.default_rng((seed, position)).integers(0, 256, (SIZE, SIZE, 3), np.uint8), 0
    with caplog.at_level(logging.INFO):
        first, second = (held_out(None, SIZE, 5, halved, Crops()) for _ in range(2))
    assert torch.equal(first.target, second.target) and torch.equal(first.lr, second.lr)
    assert "not quite unseen" in caplog.text


def test_what_does_not_fit_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(ramp(40, 40)).save(folder / "HR" / "b.png")  # five times larger, which does not divide 16
    (folder / "LR" / "c.png").write_bytes(b"nonsense")
    Image.fromarray(ramp(32, 32)).save(folder / "HR" / "c.png")
    assert len(pairs_of_folder(folder, SIZE, 100).target) == 6
    assert "b.png" in caplog.text and "c.png" in caplog.text
    with pytest.raises(FileNotFoundError, match="--val_data.*64x64"):
        held_out_crops(folder, 64, 4)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        held_out_crops(folder / "nowhere", SIZE, 4)
    with pytest.raises(ValueError, match="1 targets and 2"):
        HeldOut(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 1, 1))
