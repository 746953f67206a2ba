"""The correction by parts against that of the whole picture at once."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from models.config import PRESETS
from models.initialization import initialize
from models.varsr import VARSR
from utils import correction
from utils.batching import BatchSize
from utils.render import render
from utils.resample import TensorSource
from utils.tiles import TiledPicture

PART = 64  # smaller than in use, so that a small picture has several
SIZE = (147, 2 * PART + 31)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correction, "PART", PART)


@pytest.fixture(scope="module")
def correcting() -> VARSR:
    """A small model whose corrections do something."""
    torch.manual_seed(0)
    config = PRESETS["varsr-debug"]
    config = dataclasses.replace(config, vqvae=dataclasses.replace(
        config.vqvae, fidelity_width=8, fidelity_blocks=1, fidelity_pixels=4))
    model = VARSR(config)
    initialize(model)
    torch.nn.init.normal_(model.vqvae.fidelity.pixels.conv_out.weight, std=0.1)
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


def test_parts_are_the_whole_picture(correcting: VARSR, picture: TiledPicture, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = uncorrected(correcting, picture, monkeypatch)
    expected = correcting.correct(decoded[None], picture.guide(0, 0, *SIZE)[None])[0]
    assert (expected - decoded).abs().mean() > 0.01
    torch.testing.assert_close(rows(correcting, picture, 0, SIZE[0]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_rows_do_not_depend_on_what_is_asked_for(correcting: VARSR, picture: TiledPicture, color_fix: str) -> None:
    whole = rows(correcting, picture, 0, SIZE[0], color_fix)
    for top, bottom in ((0, 1), (63, 65), (SIZE[0] - 1, SIZE[0])):
        torch.testing.assert_close(rows(correcting, picture, top, bottom, color_fix), whole[:, top:bottom], atol=1e-4,
                                   rtol=0)


def test_one_window_is_what_the_model_gives(correcting: VARSR) -> None:
    size = correcting.config.image_size
    lr = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    picture = TiledPicture(TensorSource(lr[0]), (size, size), correcting.config)
    picture.finished[0] = correcting.generate_latent(lr)[0]
    torch.testing.assert_close(rows(correcting, picture, 0, size), correcting.generate(lr)[0], atol=1e-4, rtol=0)
