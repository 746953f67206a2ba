"""Comparison sheet: one row a picture, labelled columns, and a magnified detail below each."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .images import to_pillow

BACKGROUND, INK = "white", "black"


@dataclass(frozen=True)
class SheetLayout:
    """Sizes in pixels."""

    column: int = 400  # width of a picture on the sheet
    detail: int = 96  # side of the magnified square, in pixels of the picture
    gap: int = 8
    label: int = 26
    font: int = 17


def detail_corner(image: Tensor, side: int) -> tuple[int, int]:
    """Top left corner of the square (of `side` pixels) with the most luma variance: where there is something to see."""
    luma = image.mean(0)[None, None]
    side = min(side, *luma.shape[-2:])
    step = max(side // 4, 1)
    mean = torch.nn.functional.avg_pool2d(luma, side, step)
    square = torch.nn.functional.avg_pool2d(luma.square(), side, step)
    best = int((square - mean.square()).flatten().argmax())
    columns = mean.shape[-1]
    return best // columns * step, best % columns * step


def _row(pictures: Mapping[str, Tensor], layout: SheetLayout) -> Image.Image:
    """One picture in every column, its detail below."""
    reference = next(reversed(pictures.values()))
    height, width = reference.shape[-2:]
    shown_height = round(layout.column * height / width)
    side = min(layout.detail, height, width)
    top, left = detail_corner(reference, side)
    size = ((layout.column + layout.gap) * len(pictures), shown_height + layout.column + 2 * layout.gap)
    row = Image.new("RGB", size, BACKGROUND)
    for i, picture in enumerate(pictures.values()):
        x = i * (layout.column + layout.gap)
        whole = to_pillow(picture)
        detail = whole.crop((left, top, left + side, top + side))
        shown = whole.resize((layout.column, shown_height), Image.Resampling.LANCZOS)
        factor = layout.column / width
        ImageDraw.Draw(shown).rectangle(
            [left * factor, top * factor, (left + side) * factor, (top + side) * factor], outline="red")
        row.paste(shown, (x, 0))
        row.paste(detail.resize((layout.column, layout.column), Image.Resampling.NEAREST),
                  (x, shown_height + layout.gap))
    return row


def comparison_sheet(rows: Mapping[str, Mapping[str, Tensor]], layout: SheetLayout | None = None) -> Image.Image:
    """A sheet of pictures (3, H, W) in [0, 1]: {picture name: {column label: picture}}.

    Columns of a row have one size; the last one (the reference, if any) decides where the detail is taken.
    """
    layout = layout or SheetLayout()
    if not rows:
        raise ValueError("a comparison sheet needs at least one picture")
    drawn = [_row(pictures, layout) for pictures in rows.values()]
    sheet = Image.new("RGB", (max(row.width for row in drawn), sum(row.height + layout.label for row in drawn)),
                      BACKGROUND)
    font = ImageFont.load_default(size=layout.font)
    pen, y = ImageDraw.Draw(sheet), 0
    for (name, pictures), row in zip(rows.items(), drawn, strict=True):
        for i, label in enumerate(pictures):
            text = f"{name}: {label}" if i == 0 else label
            pen.text((i * (layout.column + layout.gap) + 4, y + 3), text, fill=INK, font=font)
        sheet.paste(row, (0, y + layout.label))
        y += row.height + layout.label
    return sheet
