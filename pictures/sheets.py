"""Sheets of pictures: comparisons for people, plain grids of training, contact sheets of classes."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils.errors import escaped

from .rgb import LEVELS_8, to_pillow, write_image

Key, Value = TypeVar("Key"), TypeVar("Value")
BACKGROUND, INK, FRAME = "white", "black", "red"
LABEL_HEIGHT, GAP, FONT_SIZE, THUMBNAIL = 22, 4, 14, 192  # pixels of the contact sheet
SHEET_ROWS = 64  # classes on it at most
ERROR_TOP = 24  # levels that are white in a map of errors
ERROR_STOPS = ((0.0, 0.0, 0.02), (0.3, 0.05, 0.45), (0.75, 0.15, 0.3), (0.98, 0.65, 0.1), (1.0, 1.0, 0.85))
LEGEND_SHARE = (2, 14)  # of its width and height, that the legend takes


@dataclass(frozen=True)
class SheetLayout:
    """Sizes in pixels. Six pictures in three columns fit a screen of 1600x1200."""

    column: int = 258  # width of a picture on the sheet
    whole: int = 186  # and its height at most
    detail: int = 172  # height of the magnified part
    magnification: int = 3
    per_line: int = 2  # pictures beside each other
    gap: int = 6
    label: int = 22
    font: int = 15


def detail_corner(image: Tensor, height: int, width: int) -> tuple[int, int]:
    """Top left corner of the part of that size with the most luma variance: where there is something to see."""
    luma = image.mean(0)[None, None]
    steps = max(height // 4, 1), max(width // 4, 1)
    mean = torch.nn.functional.avg_pool2d(luma, (height, width), steps)
    square = torch.nn.functional.avg_pool2d(luma.square(), (height, width), steps)
    best = int((square - mean.square()).flatten().argmax())
    row, column = divmod(best, mean.shape[-1])
    return row * steps[0], column * steps[1]


@dataclass(frozen=True, eq=False)
class SheetEntry:
    """A picture as a sheet shows it, far smaller than its columns were."""

    labels: tuple[str, ...]  # of the columns
    image: Image.Image


def sheet_entry(pictures: Mapping[str, Tensor], layout: SheetLayout = SheetLayout()) -> SheetEntry:
    """One picture (3, H, W) in [0, 1] in every column, by its label, and a detail of it below. Columns have one size;
    the last one (the reference, if any) decides where the detail is taken."""
    reference = next(reversed(pictures.values()))
    height, width = reference.shape[-2:]
    factor = min(layout.column / width, layout.whole / height)
    shown = max(round(width * factor), 1), max(round(height * factor), 1)
    part = (min(layout.column // layout.magnification, width), min(layout.detail // layout.magnification, height))
    top, left = detail_corner(reference, part[1], part[0])
    entry = Image.new("RGB", ((layout.column + layout.gap) * len(pictures) - layout.gap,
                              layout.whole + layout.gap + layout.detail), BACKGROUND)
    for i, picture in enumerate(pictures.values()):
        x = i * (layout.column + layout.gap)
        pixels = to_pillow(picture)
        whole = pixels.resize(shown, Image.Resampling.LANCZOS)
        frame = [edge * factor for edge in (left, top, left + part[0], top + part[1])]
        ImageDraw.Draw(whole).rectangle(frame, outline=FRAME)
        entry.paste(whole, (x + (layout.column - shown[0]) // 2, (layout.whole - shown[1]) // 2))
        detail = pixels.crop((left, top, left + part[0], top + part[1]))
        detail = detail.resize([side * layout.magnification for side in part], Image.Resampling.NEAREST)
        entry.paste(detail, (x + (layout.column - detail.width) // 2, layout.whole + layout.gap))
    return SheetEntry(tuple(pictures), entry)


def comparison_sheet(rows: Mapping[str, Mapping[str, Tensor]], layout: SheetLayout | None = None) -> Image.Image:
    """A sheet of pictures by their names (`sheet_entry`). Raises ValueError without any."""
    layout = layout or SheetLayout()
    return sheet_of({name: sheet_entry(pictures, layout) for name, pictures in rows.items()}, layout)


def sheet_of(entries: Mapping[str, SheetEntry], layout: SheetLayout = SheetLayout()) -> Image.Image:
    """The same of entries that are made already."""
    if not entries:
        raise ValueError("a comparison sheet needs at least one picture")
    step_x = max(entry.image.width for entry in entries.values()) + 2 * layout.gap
    step_y = layout.label + layout.whole + layout.gap + layout.detail + layout.gap
    lines, across = -(-len(entries) // layout.per_line), min(layout.per_line, len(entries))
    sheet = Image.new("RGB", (across * step_x - 2 * layout.gap, lines * step_y - layout.gap), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=layout.font)
    for place, (name, entry) in enumerate(entries.items()):
        y, x = (index * step for index, step in zip(divmod(place, layout.per_line), (step_y, step_x)))
        for i, label in enumerate(entry.labels):
            text = f"{name}: {label}" if i == 0 else label
            pen.text((x + i * (layout.column + layout.gap) + 4, y + 2), text, fill=INK, font=font)
        sheet.paste(entry.image, (x, y + layout.label))
    return sheet


def error_picture(levels: Tensor) -> Tensor:
    """Expected errors (H, W) in levels in colours, (3, H, W) in [0, 1], with a legend in the lower left corner: black,
    violet, red, yellow, white for 0 to `ERROR_TOP` and more."""
    picture = to_pillow(_error_colours(levels))
    width, height = (max(side // share, 1) for side, share in zip(picture.size, LEGEND_SHARE, strict=True))
    bar = _error_colours(torch.linspace(0, ERROR_TOP, width).expand(height, width))
    box = (0, picture.height - 2 * height, width, picture.height)
    pen = ImageDraw.Draw(picture)
    pen.rectangle(box, fill="black")
    picture.paste(to_pillow(bar), (0, picture.height - height))
    font = ImageFont.load_default(size=max(height - 2, 6))
    pen.text((1, box[1]), "0", fill="white", font=font)
    pen.text((width - 1, box[1]), f"{ERROR_TOP} levels", fill="white", font=font, anchor="ra")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / LEVELS_8


def _error_colours(levels: Tensor) -> Tensor:
    """Levels (H, W) to colours (3, H, W) in [0, 1], linear between the stops."""
    stops = torch.tensor(ERROR_STOPS).T
    place = (levels.float() / ERROR_TOP).clamp(0, 1) * (stops.shape[1] - 1)
    low = place.floor().clamp(max=stops.shape[1] - 2).long()
    return torch.lerp(stops[:, low], stops[:, low + 1], place - low)


def labels_of(paths: Iterable[Path]) -> dict[Path, str]:
    """A name on a sheet for each file: its stem, with as many folders before it as tell it from the others; what is no
    text in it is escaped."""
    paths = list(paths)
    labels = {path: path.stem for path in paths}
    for depth in range(1, max((len(path.parts) for path in paths), default=0)):
        count = Counter(labels.values())
        for path, label in labels.items():
            if count[label] > 1:
                labels[path] = Path(*path.parent.parts[-depth:], path.stem).as_posix()
    return {path: escaped(label if list(labels.values()).count(label) == 1 else str(path))
            for path, label in labels.items()}


def evenly(rows: Mapping[Key, Value], count: int | None) -> dict[Key, Value]:
    """`count` of the rows, evenly spread; all for None or where there are no more."""
    names = list(rows)
    if count is None or count >= len(names):
        return dict(rows)
    return {names[i]: rows[names[i]] for i in (place * len(names) // count for place in range(count))}


def write_grid(path: Path, rows: Sequence[Tensor], gap: int = 2) -> None:
    """Write a PNG of rows of pictures; each row is (M, 3, H, W) in [0, 1], all of one size. Raises ImageError."""
    padded = [torch.nn.functional.pad(row.float().cpu(), (0, gap, 0, gap), value=1.0) for row in rows]
    lines = [torch.cat(list(row), dim=2) for row in padded]  # (3, H, M*W)
    sheet = torch.cat(lines, dim=1)
    write_image(path, sheet)


class ContactSheet:
    """One row of thumbnails a class under its title; classes after the first 64 are left out."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Image.Image]] = {}

    def add(self, title: str, picture: Tensor) -> None:
        """Add a picture (3, S, S) in [0, 1] to its class's row."""
        if title not in self.rows and len(self.rows) == SHEET_ROWS:
            return
        thumbnail = to_pillow(picture)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        self.rows.setdefault(title, []).append(thumbnail)

    def render(self) -> Image.Image:
        """The sheet."""
        size = next(iter(self.rows.values()))[0].height
        width = max(len(pictures) for pictures in self.rows.values()) * (size + GAP)
        sheet = Image.new("RGB", (width, len(self.rows) * (size + GAP + LABEL_HEIGHT)), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT_SIZE)
        for row, (title, pictures) in enumerate(self.rows.items()):
            top = row * (size + GAP + LABEL_HEIGHT)
            pen.text((GAP, top + GAP), title, fill="black", font=font)
            for column, picture in enumerate(pictures):
                sheet.paste(picture, (column * (size + GAP), top + LABEL_HEIGHT))
        return sheet
