"""Regions of results redone by the page, without a browser: what stays, what is new, which seeds, what is refused."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_picture
from PIL import Image

from inference.redo import redo
from inference.settings import ModelDescription
from models.varsr import VARSR
from pictures.picture import Picture, read_picture
from pictures.rgb import read_image
from utils.errors import UserError
from web.jobs import RestoreRequest, Update, restore_file
from web.kept import Result
from web.redoing import VARIANTS, chosen, draw_variants, region_of, shown_part, write_result
from web.sessions import Cancelled

PLENTY, SIZE = 10 ** 7, (36, 80)


@pytest.fixture(scope="module")
def first(model: VARSR, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A result of several windows, kept for redoing, and its file."""
    folder, kept = tmp_path_factory.mktemp("redo"), []
    noise_picture(9, 20).save(folder / "noise.png")

    def keep(*parts: object) -> Result:
        kept.append(Result("small", *parts))
        return kept[-1]
    news: list[Update] = []
    restore_file(model, ModelDescription("", "model small"), RestoreRequest(folder / "noise.png", seed=7, cfg=1.0),
                 folder / "out", PLENTY, news.append, keep=keep)
    assert news[-1].result is kept[0]
    return kept[0], news[-1].file


@pytest.fixture(scope="module")
def region() -> torch.Tensor:
    region = torch.zeros(SIZE, dtype=torch.bool)
    region[4:30, 20:60] = True
    return region


@pytest.fixture(scope="module")
def drawn(model: VARSR, first: tuple[Result, Path], region: torch.Tensor) -> tuple[Result, list[Update]]:
    news: list[Update] = []
    return draw_variants(model, first[0], region, news.append), news


def test_the_kept_result_is_the_one_in_the_file(first: tuple[Result, Path]) -> None:
    result, file = first
    torch.testing.assert_close(result.variant.restored.clamp(0, 1), read_image(file), atol=0.51 / 255, rtol=0)


def test_variants_are_those_of_the_engine(model: VARSR, first: tuple[Result, Path], region: torch.Tensor,
                                          drawn: tuple[Result, list[Update]]) -> None:
    before, (after, _) = first[0], drawn
    assert len(after.choices) == VARIANTS + 1 and after.choices[0] is before.variant is after.variant
    assert after.key == before.key and after.drawn == VARIANTS
    settings = dataclasses.replace(before.settings, seed=9, generation=before.settings.generation.varied())
    lr = before.source.region(0, 0, 9, 20)
    torch.testing.assert_close(after.choices[2].restored, redo(model, lr, before.variant.state, region, settings,
                                                               before.variant.restored), atol=1e-4, rtol=0)
    for place, choice in enumerate(after.choices):
        assert torch.equal(choice.restored[:, ~region], before.variant.restored[:, ~region])
        assert type(choice.state.codes) is dict
        for other in after.choices[:place]:
            assert (choice.restored - other.restored).abs().max() > 2 / 255


def test_variants_are_told_one_by_one(drawn: tuple[Result, list[Update]], region: torch.Tensor) -> None:
    shown = [update.pictures for update in drawn[1] if update.pictures]
    assert [len(pictures) for pictures in shown] == [2, 3, 4, 5]
    assert shown[-1][0].shape == drawn[0].variant.restored[shown_part(region)].shape == (3, 36, 64)
    shares = [update.share for update in drawn[1]]
    assert shares == sorted(shares) and shares[-1] == 1 and "seed 11" in drawn[1][-1].message


def test_a_chosen_variant_has_a_file_like_the_first(first: tuple[Result, Path], drawn: tuple[Result, list[Update]],
                                                    region: torch.Tensor, tmp_path: Path) -> None:
    taken = chosen(drawn[0], 3)
    assert taken.variant is drawn[0].choices[3] and taken.key != drawn[0].key
    file = write_result(taken, tmp_path)
    assert file.name == first[1].name
    with Image.open(file) as found, Image.open(first[1]) as before:
        differs = (np.asarray(found) != np.asarray(before)).any(axis=2)
        assert differs.any() and not differs[~region.numpy()].any()
        assert "redone seed=10" in found.text["VARSR"] and "seed=7" in found.text["VARSR"]


def test_one_may_go_on(model: VARSR, drawn: tuple[Result, list[Update]]) -> None:
    region, taken = torch.zeros(SIZE, dtype=torch.bool), chosen(drawn[0], 1)
    region[:20, :30] = True
    again = draw_variants(model, taken, region, lambda update: None)
    assert again.drawn == 2 * VARIANTS and again.choices[0] is taken.variant
    text = dict(again.choices[1].making)["VARSR"]
    assert "redone seed=8 " in text and "redone seed=12 " in text
    assert torch.equal(again.choices[1].restored[:, ~region], taken.variant.restored[:, ~region])


@pytest.mark.parametrize("last", [0, 1, 3])
def test_variants_are_cancelled(model: VARSR, first: tuple[Result, Path], region: torch.Tensor, last: int) -> None:
    seen = iter(range(last))

    def tell(_: Update) -> None:
        if next(seen, None) is None:
            raise Cancelled
    with pytest.raises(Cancelled):
        draw_variants(model, first[0], region, tell)


def painting(folder: Path, pixels: np.ndarray) -> Picture:
    Image.fromarray(pixels).save(folder / "layer.png")
    return read_picture(folder / "layer.png")


def test_what_is_painted_is_the_region(tmp_path: Path) -> None:
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[3:7, 5:9] = (255, 0, 0, 255)
    pixels[3:7, 9] = (255, 0, 0, 127)
    found = region_of(painting(tmp_path, pixels), SIZE)
    assert int(found.sum()) == 16 and found[3:7, 5:9].all()


    for channels in (3, 4):
        assert region_of(painting(tmp_path, np.full((*SIZE, channels), 255, np.uint8)), SIZE).all()


def test_paintings_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is painted"):
        region_of(painting(tmp_path, np.zeros((*SIZE, 4), np.uint8)), SIZE)
    with pytest.raises(UserError, match="the painting: 36x80 pixels, the result has 80x36"):
        region_of(painting(tmp_path, np.full((80, 36, 4), 255, np.uint8)), SIZE)


def test_there_is_nothing_to_choose_before_variants(first: tuple[Result, Path]) -> None:
    with pytest.raises(UserError, match="draw some first"):
        chosen(first[0], 0)


@pytest.mark.parametrize("more", [{"lr_consistency": 1.0}, {"scale": 16.0}], ids=["promise", "large"])
def test_what_cannot_be_redone_is_not_kept(model: VARSR, first: tuple[Result, Path], tmp_path: Path, more: dict,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.kept.MAX_REDO_PIXELS", 36 * 80)
    noise_picture(4, 4).save(tmp_path / "small.png")
    news: list[Update] = []
    restore_file(model, ModelDescription("", ""), RestoreRequest(tmp_path / "small.png", **more), tmp_path / "out",
                 PLENTY, news.append, keep=pytest.fail)
    assert news[-1].result is None and news[-1].file is not None
