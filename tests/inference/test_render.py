"""Merging, tiled decoding and banded filters against their whole-picture versions."""
from __future__ import annotations

import pytest
import torch

from inference.generate import BatchSize
from inference.render import merged_latent, render, wavelet_color_fix, with_context
from inference.windows import TiledPicture
from models.varsr import VARSR
from pictures.rgb import TensorSource


def random_picture(model: VARSR, size: tuple[int, int] = (70, 90)) -> TiledPicture:
    """A picture with random latents in all windows."""
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(3, size[0] // 4, size[1] // 4, generator=generator)
    picture = TiledPicture(TensorSource(lr), size, model.config)
    side = model.config.vqvae.side
    for window in picture.grid:
        picture.finished[window.index] = torch.randn(model.config.vqvae.latent_channels, side, side,
                                                     generator=generator)
    return picture


def test_merging_is_the_weighted_sum(model: VARSR) -> None:
    picture = random_picture(model)
    grid, side = picture.grid, picture.grid.window
    whole = torch.zeros(model.config.vqvae.latent_channels, grid.rows.length, grid.columns.length)
    for window in grid:
        share = grid.rows.shares[window.row][:, None] * grid.columns.shares[window.column]
        whole[:, window.top:window.top + side, window.left:window.left + side] += \
            picture.finished[window.index] * share
    for top in (*grid.rows.starts, 1, 2):
        torch.testing.assert_close(merged_latent(picture, picture.finished, top), whole[:, top:top + side],
                                   atol=1e-5, rtol=0)
    for top, height in ((0, grid.rows.length), (1, 1), (2, side + 3)):
        torch.testing.assert_close(merged_latent(picture, picture.finished, top, height), whole[:, top:top + height],
                                   atol=1e-5, rtol=0)


@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_rows_are_the_same_whichever_are_asked_for(model: VARSR, color_fix: str) -> None:
    picture = random_picture(model)

    def rows(top: int, bottom: int) -> torch.Tensor:
        bands = list(render(model, picture, picture.finished, color_fix, BatchSize(3), top, bottom))
        edges = [top, *(first + band.shape[1] for first, band in bands)]
        assert [first for first, _ in bands] == edges[:-1] and edges[-1] == bottom
        return torch.cat([band for _, band in bands], dim=1)
    whole = rows(0, 70)
    assert whole.shape == (3, 70, 90)
    for top, bottom in ((0, 1), (13, 50), (35, 70), (69, 70)):
        torch.testing.assert_close(rows(top, bottom), whole[:, top:bottom], atol=1e-5, rtol=0)


def test_the_wavelet_fix_by_bands_is_that_of_the_whole(model: VARSR) -> None:
    picture = random_picture(model)

    def whole(color_fix: str) -> torch.Tensor:
        return torch.cat([band for _, band in render(model, picture, picture.finished, color_fix, BatchSize(8))], 1)
    expected = wavelet_color_fix(whole("none"), picture.guide(0, 0, 70, 90))
    torch.testing.assert_close(whole("wavelet"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("least", [1, 16, 100])
@pytest.mark.parametrize("heights", [[50], [1] * 50, [30, 1, 19], [3, 40, 7]])
def test_context_reaches_over_the_bands(heights: list[int], least: int) -> None:
    """A running sum over 11 rows, with zeros past the edges, comes out as over the whole picture."""
    picture, reach = torch.rand(3, 50, 4), 5

    def smooth(rows: torch.Tensor, _: int) -> torch.Tensor:
        padded = torch.nn.functional.pad(rows, (0, 0, reach, reach))
        return padded.unfold(1, 2 * reach + 1, 1).sum(-1)
    bands = list(zip([sum(heights[:i]) for i in range(len(heights))], picture.split(heights, dim=1)))
    filtered = list(with_context(iter(bands), reach, smooth, least))
    assert all(rows.shape[1] >= least for _, rows in filtered[:-1])
    assert [top for top, _ in filtered] == [sum(f.shape[1] for _, f in filtered[:i]) for i in range(len(filtered))]
    torch.testing.assert_close(torch.cat([rows for _, rows in filtered], dim=1), smooth(picture, 0))
