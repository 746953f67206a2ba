"""Seams of the embedded model's 2048x2048 results, measured on a mosaic of all sample pictures."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.varsr import VARSR
from utils.cli import choose_dtype
from utils.generation import RestoreSettings
from utils.images import read_image
from utils.metrics import psnr_y
from utils.restore import restore
from utils.windows import WindowAxis

ROOT = Path(__file__).resolve().parent.parent
LR_SIDE, TILE = 512, 128  # LR pixels of the mosaic and of each picture in it
# LR pixels by overlap: half a step of the windows, so that the borders of one grid lie amid the other's windows
SHIFT = {0.25: 12, 0.0: 16}
MARGIN = 128  # pixels at the picture's own edges that are not judged


@pytest.fixture(scope="module")
def tiny() -> VARSR:
    device = torch.device("cpu")
    dtype = choose_dtype("auto", device)
    return VARSR.from_pretrained(ROOT / "checkpoints" / "varsr-tiny", dtype=dtype, device=device).for_inference()


@pytest.fixture(scope="module")
def mosaic() -> Tensor:
    """(3, 512, 512): the middles of the sample pictures, taken in turn."""
    pictures = [read_image(path) for path in sorted((ROOT / "testset" / "sample" / "HR").iterdir())]
    middles = [picture[:, (picture.shape[1] - TILE) // 2:, (picture.shape[2] - TILE) // 2:][:, :TILE, :TILE]
               for picture in pictures]
    count = LR_SIDE // TILE
    rows = [torch.cat([middles[(row * count + column) % len(middles)] for column in range(count)], dim=2)
            for row in range(count)]
    return torch.cat(rows, dim=1)


def gradient(picture: Tensor, axis: int, borders: list[int]) -> float:
    """Mean absolute step of (3, H, W) across these pixel borders along an axis."""
    steps = picture.diff(dim=axis).abs().mean(dim=[other for other in range(3) if other != axis])
    return steps[torch.tensor(borders) - 1].mean().item()


def border_ratio(model: VARSR, picture: Tensor, shifted: Tensor, overlap: float) -> float:
    """Steps across the windows' borders of `picture`, over the steps in the same places of `shifted`.

    `shifted` is of another grid, whose windows have no border there. So the picture's own content, and the model's
    own cells of 8 pixels, on whose borders all windows begin, are in both.
    """
    side, factor = model.config.vqvae.side, model.config.vqvae.downsampling
    axis = WindowAxis(picture.shape[1] // factor, side, overlap)
    offset = SHIFT[overlap] * 4
    borders = {factor * cell - offset for start in axis.starts for cell in (start, start + side)}
    inner = sorted(border for border in borders if MARGIN <= border <= shifted.shape[1] - MARGIN)
    cut = picture[:, offset:-offset, offset:-offset]
    return sum(gradient(cut, d, inner) / gradient(shifted, d, inner) for d in (1, 2)) / 2


def both_grids(model: VARSR, lr: Tensor, settings: RestoreSettings) -> tuple[Tensor, Tensor]:
    """The restored picture, and its inside restored on the shifted grid."""
    shift = SHIFT[settings.overlap]
    return restore(model, lr, settings), restore(model, lr[:, shift:-shift, shift:-shift], settings)


BORDER_TOLERANCE = 0.03


@pytest.mark.slow
def test_borders_of_windows_do_not_show(tiny: VARSR, mosaic: Tensor) -> None:
    settings = RestoreSettings(tiny.config.generation)
    picture, shifted = both_grids(tiny, mosaic, settings)
    assert abs(border_ratio(tiny, picture, shifted, settings.overlap) - 1) < BORDER_TOLERANCE
    offset, inside = 4 * SHIFT[settings.overlap], slice(MARGIN, -MARGIN)
    same_place = picture[:, offset:-offset, offset:-offset]
    # docs/large_images.md: less than two gray levels, though not as little as another seed
    assert psnr_y(same_place[:, inside, inside], shifted[:, inside, inside]) > 40


@pytest.mark.slow
def test_without_overlap_they_do(tiny: VARSR, mosaic: Tensor) -> None:
    settings = RestoreSettings(tiny.config.generation, overlap=0.0)
    picture, shifted = both_grids(tiny, mosaic[:, :LR_SIDE // 2, :LR_SIDE // 2], settings)
    assert abs(border_ratio(tiny, picture, shifted, settings.overlap) - 1) > 2 * BORDER_TOLERANCE
