"""Seams of the embedded model, on parts of the mosaic that `benchmarks/bench_seams.py` measures them on."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.bench_seams import LR_SIDE, agreement, border_ratio, both_grids, mosaic
from evaluation.metrics.full_reference import psnr_y
from inference.restore import restore
from inference.settings import RestoreSettings
from models.varsr import VARSR
from utils.device import choose_dtype

ROOT = Path(__file__).resolve().parents[2]
BORDER_TOLERANCE = 0.03
LESS, MORE = LR_SIDE * 3 // 8, LR_SIDE * 13 // 32  # LR pixels
SEED_MARGIN = 1.5  # dB that another grid may change more than another seed


@pytest.fixture(scope="module")
def tiny() -> VARSR:
    device = torch.device("cpu")
    dtype = choose_dtype("auto", device)
    return VARSR.from_pretrained(ROOT / "checkpoints" / "varsr-tiny", dtype=dtype, device=device).for_inference()


def part_of_mosaic(side: int) -> torch.Tensor:
    return mosaic()[:, :side, :side]


@pytest.mark.slow
def test_borders_of_windows_do_not_show(tiny: VARSR) -> None:
    settings = RestoreSettings(dataclasses.replace(tiny.config.generation, fidelity=1.0))
    picture, shifted = both_grids(tiny, part_of_mosaic(MORE), settings)
    assert abs(border_ratio(tiny, picture, shifted, settings.overlap) - 1) < BORDER_TOLERANCE
    # docs/large_images.md: less than two gray levels, though not as little as another seed; 43 without blending
    assert agreement(picture, shifted, settings.overlap) > 44


@pytest.mark.slow
def test_they_do_not_show_in_what_is_added_to_it_either(tiny: VARSR) -> None:
    """Detail answers to small differences with large ones, so another grid is held to what another seed changes."""
    settings, lr = RestoreSettings(tiny.config.generation), part_of_mosaic(LESS)
    assert tiny.config.generation.fidelity < 1
    picture, shifted = both_grids(tiny, lr, settings)
    assert abs(border_ratio(tiny, picture, shifted, settings.overlap) - 1) < BORDER_TOLERANCE
    other_seed = restore(tiny, lr, dataclasses.replace(settings, seed=1))
    assert agreement(picture, shifted, settings.overlap) > psnr_y(picture, other_seed) - SEED_MARGIN


@pytest.mark.slow
def test_without_overlap_they_do(tiny: VARSR) -> None:
    settings = RestoreSettings(dataclasses.replace(tiny.config.generation, fidelity=1.0), overlap=0.0)
    picture, shifted = both_grids(tiny, part_of_mosaic(LESS), settings)
    assert abs(border_ratio(tiny, picture, shifted, settings.overlap) - 1) > 2 * BORDER_TOLERANCE
