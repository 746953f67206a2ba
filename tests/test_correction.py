"""The correction by tiles against that of the whole picture at once."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from models.config import PRESETS
from models.initialization import initialize
from models.varsr import VARSR
from utils.batching import BatchSize
from utils.correction import CONTEXT, TILE, Rows, needed_rows
from utils.render import render
from utils.resample import TensorSource
from utils.tiles import TiledPicture

SIZE = (TILE + 83, 2 * TILE + 31)  # sides that neither tiles nor the stem divide
TRUNK_BLOCKS = 2  # they reach 4 x (1 + 2 x 2 + 1) + 3 = 27 pixels: within CONTEXT, so that tiles are exact


@pytest.fixture(scope="module")
def correcting() -> VARSR:
    """A small model whose corrections do something."""
    torch.manual_seed(0)
    config = PRESETS["varsr-debug"]
    config = dataclasses.replace(config, vqvae=dataclasses.replace(
        config.vqvae, fidelity_width=8, fidelity_blocks=1, fidelity_pixels=4, fidelity_trunk=TRUNK_BLOCKS,
        fidelity_trunk_width=8))
    model = VARSR(config)
    initialize(model)
    pixels = model.vqvae.fidelity.pixels
    for layer in (pixels.conv_out, pixels.trunk.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def picture(correcting: VARSR) -> TiledPicture:
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(3, SIZE[0] // 4, SIZE[1] // 4, generator=generator)
    picture = TiledPicture(TensorSource(lr), SIZE, correcting.config)
    side, channels = correcting.config.vqvae.side, correcting.config.vqvae.latent_channels
    for window in picture.grid:
        picture.finished[window.index] = torch.randn(channels, side, side, generator=generator)
    return picture


def rows(model: VARSR, picture: TiledPicture, top: int, bottom: int, color_fix: str = "none") -> torch.Tensor:
    bands = list(render(model, picture, picture.finished, color_fix, BatchSize(16), top, bottom))
    edges = [top, *(first + band.shape[1] for first, band in bands)]
    assert [first for first, _ in bands] == edges[:-1] and edges[-1] == bottom
    return torch.cat([band for _, band in bands], dim=1)


def uncorrected(model: VARSR, picture: TiledPicture, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(VARSR, "correct", lambda self, decoded, lr: decoded)
        return rows(model, picture, 0, picture.height)


def test_tiles_are_the_whole_picture(correcting: VARSR, picture: TiledPicture, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = SIZE
    decoded = uncorrected(correcting, picture, monkeypatch)
    padded = [torch.nn.functional.pad(part[None], (0, -width % 4, 0, -height % 4), mode="replicate")
              for part in (decoded, picture.guide(0, 0, height, width))]
    expected = correcting.correct(*padded)[0, :, :height, :width]
    assert (expected - decoded).abs().mean() > 0.01
    torch.testing.assert_close(rows(correcting, picture, 0, height), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_rows_do_not_depend_on_what_is_asked_for(correcting: VARSR, picture: TiledPicture, color_fix: str) -> None:
    whole = rows(correcting, picture, 0, SIZE[0], color_fix)
    for top, bottom in ((TILE - 1, TILE + 1), (SIZE[0] - 1, SIZE[0])):
        torch.testing.assert_close(rows(correcting, picture, top, bottom, color_fix), whole[:, top:bottom], atol=1e-4,
                                   rtol=0)


def test_one_window_is_what_the_model_gives(correcting: VARSR) -> None:
    size = correcting.config.image_size
    lr = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    picture = TiledPicture(TensorSource(lr[0]), (size, size), correcting.config)
    picture.finished[0] = correcting.generate_latent(lr)[0]
    torch.testing.assert_close(rows(correcting, picture, 0, size), correcting.generate(lr)[0], atol=1e-4, rtol=0)


def test_rows_come_once_and_in_order() -> None:
    whole = torch.arange(100.0).expand(3, 1, 100).transpose(1, 2)
    held = Rows(iter([(10 * i, whole[:, 10 * i:10 * i + 10]) for i in range(10)]))
    for first, last in ((0, 3), (2, 25), (24, 26), (60, 100)):
        assert torch.equal(held.take(first, last), whole[:, first:last])
    assert held.held.shape[1] <= 40


def test_what_is_needed_reaches_past_the_tiles() -> None:
    assert needed_rows(10 * TILE, 0, 1) == (0, TILE + CONTEXT)
    assert needed_rows(10 * TILE, TILE, 2 * TILE + 1) == (TILE - CONTEXT, 3 * TILE + CONTEXT)
    assert needed_rows(100, 50, 60) == (0, 100)
