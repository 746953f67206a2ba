"""Seams of the embedded model's 2048x2048 results, measured on a mosaic of all sample pictures."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.bench_seams import LR_SIDE, agreement, border_ratio, both_grids, mosaic
from models.varsr import VARSR
from utils.cli import choose_dtype
from utils.generation import RestoreSettings

ROOT = Path(__file__).resolve().parent.parent
BORDER_TOLERANCE = 0.03


@pytest.fixture(scope="module")
def tiny() -> VARSR:
    device = torch.device("cpu")
    dtype = choose_dtype("auto", device)
    return VARSR.from_pretrained(ROOT / "checkpoints" / "varsr-tiny", dtype=dtype, device=device).for_inference()


@pytest.mark.slow
def test_borders_of_windows_do_not_show(tiny: VARSR) -> None:
    settings = RestoreSettings(tiny.config.generation)
    picture, shifted = both_grids(tiny, mosaic(), settings)
    assert abs(border_ratio(tiny, picture, shifted, settings.overlap) - 1) < BORDER_TOLERANCE
    # docs/large_images.md: less than two gray levels, though not as little as another seed
    assert agreement(picture, shifted, settings.overlap) > 40


@pytest.mark.slow
def test_without_overlap_they_do(tiny: VARSR) -> None:
    settings = RestoreSettings(tiny.config.generation, overlap=0.0)
    picture, shifted = both_grids(tiny, mosaic()[:, :LR_SIDE // 2, :LR_SIDE // 2], settings)
    assert abs(border_ratio(tiny, picture, shifted, settings.overlap) - 1) > 2 * BORDER_TOLERANCE
