"""The comparison sheet: what is on it, where, and that it fits a screen."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pictures.sheets import (
    ERROR_TOP,
    SheetLayout,
    comparison_sheet,
    detail_corner,
    error_picture,
    evenly,
    labels_of,
)

SCREEN = 1600, 1200


def flat(level: float, height: int = 60, width: int = 80) -> Tensor:
    return torch.full((3, height, width), level)


def columns(height: int = 60, width: int = 80) -> dict[str, Tensor]:
    return {"bicubic": flat(0.2, height, width), "VARSR": flat(0.5, height, width), "HR": flat(0.8, height, width)}


@pytest.mark.parametrize("size", [(512, 512), (448, 640), (640, 448), (100, 900), (40, 30),
                                  (4, 3600), (3600, 4), (1, 1)])
def test_six_pictures_fit_a_screen(size: tuple[int, int]) -> None:
    sheet = comparison_sheet({str(i): columns(*size) for i in range(6)})
    assert sheet.width <= SCREEN[0] and sheet.height <= SCREEN[1]


def test_every_column_shows_its_picture_whole_and_magnified() -> None:
    layout = SheetLayout()
    pixels = np.asarray(comparison_sheet({"one": columns()}))
    for place, level in enumerate((51, 128, 204)):
        middle = place * (layout.column + layout.gap) + layout.column // 2
        for row in (layout.label + layout.whole // 2, layout.label + layout.whole + layout.gap + layout.detail // 2):
            assert abs(pixels[row, middle].astype(int) - level).max() <= 1


def test_pictures_lie_beside_and_below_each_other() -> None:
    one, two, three = (comparison_sheet({str(i): columns() for i in range(count)}).size for count in (1, 2, 3))
    assert two[0] > 1.9 * one[0] and two[1] == one[1]
    assert three[0] == two[0] and three[1] > 1.9 * two[1]
    alone = comparison_sheet({str(i): columns() for i in range(3)}, SheetLayout(per_line=1))
    assert alone.width == one[0] and alone.height > 2.9 * one[1]


def test_the_detail_is_where_something_can_be_seen() -> None:
    picture = flat(0.5, 64, 96)
    picture[:, 40:56, 60:90:2] = 1.0
    top, left = detail_corner(picture, 16, 24)
    assert 32 <= top <= 48 and 54 <= left <= 72


def test_pictures_are_chosen_evenly() -> None:
    rows = {str(i): columns() for i in range(10)}
    assert list(evenly(rows, 5)) == ["0", "2", "4", "6", "8"]
    assert list(evenly(rows, None)) == list(evenly(rows, 10)) == list(evenly(rows, 99)) == list(rows)


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        comparison_sheet({})


def test_labels_tell_pictures_apart() -> None:
    paths = [Path("out", *parts) for parts in (("x", "1.png"), ("y", "1.png"), ("y", "2.png"), ("a", "z", "3.png"),
                                               ("b", "z", "3.png"))]
    assert list(labels_of(paths).values()) == ["x/1", "y/1", "2", "a/z/3", "b/z/3"]
    assert list(labels_of([Path("a", "1.png"), Path("a", "1.jpg")]).values()) == ["a/1.png", "a/1.jpg"]
    assert labels_of([Path("caf\udce9.png")])[Path("caf\udce9.png")] == "caf\\udce9"


def test_larger_errors_are_brighter() -> None:
    levels = torch.linspace(0, 1.2 * ERROR_TOP, 400)
    picture = error_picture(levels.expand(60, 400))[:, 0]  # above the legend
    luma = (picture * torch.tensor([0.299, 0.587, 0.114])[:, None]).sum(0)
    inside = int((levels <= ERROR_TOP).sum())
    assert float(luma.diff().min()) > -0.004 and float(luma[0]) < 0.02 and float(luma[-1]) > 0.95
    steps = luma[:inside:30]
    assert float(steps.diff().min()) > 0.02  # every step is seen
    assert torch.equal(picture[:, inside], picture[:, -1])  # as bright as it gets
    below = error_picture(torch.full((8, 8), -5.0))
    assert torch.equal(below[:, 0, 4:], error_picture(torch.zeros(8, 8))[:, 0, 4:])


def test_the_legend_names_the_colours() -> None:
    flat_errors = torch.full((280, 400), 3.0)
    picture = error_picture(flat_errors)
    plain = picture[:, 0, 0]
    other = (picture != plain[:, None, None]).any(0)
    assert not other[:280 - 40].any() and not other[:, 201:].any()  # the lower left corner alone
    bar = picture[:, -20:, :200]
    assert torch.equal(bar[:, 0], bar[:, -1])
    colours = error_picture(torch.linspace(0, ERROR_TOP, 200).expand(280, 200))[:, 0]
    torch.testing.assert_close(bar[:, -1], colours, atol=1 / 255, rtol=0)
    text = picture[:, -40:-20, :200]
    assert (text == 1).all(0).any() and float(text.mean()) < 0.3  # white on black


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (13, 7), (300, 20), (20, 900)])
def test_maps_of_any_size_have_colours(size: tuple[int, int]) -> None:
    picture = error_picture(torch.rand(size, generator=torch.Generator().manual_seed(0)) * 30)
    assert picture.shape == (3, *size) and float(picture.min()) >= 0 and float(picture.max()) <= 1
