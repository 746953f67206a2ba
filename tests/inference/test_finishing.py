"""Correction and detail by parts against those of the whole picture at once."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from inference import render as finishing
from inference import render as rendering
from inference.generate import BatchSize
from inference.render import merged_latent, render
from inference.windows import TiledPicture
from models.config import PRESETS
from models.initialization import initialize
from models.varsr import VARSR
from pictures.rgb import TensorSource

PART = 64  # smaller than in use, so that a small picture has several
SIZE = (147, 2 * PART + 31)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (finishing, rendering):
        monkeypatch.setattr(module, "PART", PART)


PARTS = {"correction": {"fidelity_width": 8, "fidelity_blocks": 1, "fidelity_pixels": 4},
         "detail": {"detail_width": 8, "detail_blocks": 1}}
PARTS["both"] = PARTS["correction"] | PARTS["detail"]
PARTS["faithful"] = {"faithful_width": 8, "faithful_blocks": 1}
PARTS["faithful and detail"] = PARTS["faithful"] | PARTS["detail"]


@pytest.fixture(scope="module", params=PARTS)
def finishing_model(request: pytest.FixtureRequest) -> VARSR:
    """A small model whose corrections or details do something."""
    torch.manual_seed(0)
    config = PRESETS["varsr-debug"]
    model = VARSR(dataclasses.replace(config, vqvae=dataclasses.replace(config.vqvae, **PARTS[request.param])))
    initialize(model)
    if model.vqvae.corrects:
        torch.nn.init.normal_(model.vqvae.fidelity.pixels.conv_out.weight, std=0.1)
    for branch in (model.vqvae.faithful, model.vqvae.detail):
        if branch is not None:
            torch.nn.init.normal_(branch.conv_out.weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def picture(finishing_model: VARSR) -> TiledPicture:
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(3, SIZE[0] // 4, SIZE[1] // 4, generator=generator)
    picture = TiledPicture(TensorSource(lr), SIZE, finishing_model.config)
    side, channels = finishing_model.config.vqvae.side, finishing_model.config.vqvae.latent_channels
    for window in picture.grid:
        picture.finished[window.index] = torch.randn(channels, side, side, generator=generator)
    return picture


def rows(model: VARSR, picture: TiledPicture, top: int, bottom: int, color_fix: str = "none") -> torch.Tensor:
    bands = list(render(model, picture, picture.finished, color_fix, BatchSize(16), top, bottom))
    edges = [top, *(first + band.shape[1] for first, band in bands)]
    assert [first for first, _ in bands] == edges[:-1] and edges[-1] == bottom
    return torch.cat([band for _, band in bands], dim=1)


def unfinished(model: VARSR, picture: TiledPicture, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    if model.vqvae.restores:
        return picture.guide(0, 0, *SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(VARSR, "finish", lambda self, decoded, *_: decoded)
        return rows(model, picture, 0, picture.height)


def test_parts_are_the_whole_picture(finishing_model: VARSR, picture: TiledPicture,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = unfinished(finishing_model, picture, monkeypatch)
    cells = merged_latent(picture, picture.finished, 0, picture.grid.rows.length)
    missing = (0, cells.shape[2] * picture.factor - SIZE[1], 0, cells.shape[1] * picture.factor - SIZE[0])
    whole = [torch.nn.functional.pad(each[None], missing, mode="replicate")
             for each in (decoded, picture.guide(0, 0, *SIZE))]
    expected = finishing_model.finish(*whole, cells[None])[0, :, :SIZE[0], :SIZE[1]]
    assert (expected - decoded).abs().mean() > 0.01
    torch.testing.assert_close(rows(finishing_model, picture, 0, SIZE[0]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_rows_do_not_depend_on_what_is_asked_for(finishing_model: VARSR, picture: TiledPicture,
                                                 color_fix: str) -> None:
    whole = rows(finishing_model, picture, 0, SIZE[0], color_fix)
    for top, bottom in ((0, 1), (63, 65), (SIZE[0] - 1, SIZE[0])):
        part = rows(finishing_model, picture, top, bottom, color_fix)
        torch.testing.assert_close(part, whole[:, top:bottom], atol=1e-4, rtol=0)


def test_one_window_is_what_the_model_gives(finishing_model: VARSR) -> None:
    size = finishing_model.config.image_size
    lr = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    picture = TiledPicture(TensorSource(lr[0]), (size, size), finishing_model.config)
    picture.finished[0] = finishing_model.generate_latent(lr)[0]
    expected = finishing_model.generate(lr)[0]
    torch.testing.assert_close(rows(finishing_model, picture, 0, size), expected, atol=1e-4, rtol=0)
