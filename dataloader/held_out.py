"""Pictures that training does not see: windows of a folder's pictures, with their LR pictures, always the same ones."""
from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pictures.formats import HR_FOLDER, LR_FOLDER, ImageError, matching_reference, pictures_in
from pictures.rgb import read_image
from utils.errors import UserError

from .pairs import Degrader, SampleSource, drawn

log = logging.getLogger(__name__)

SEED = 12345  # of the crops and their degradation


@dataclass(frozen=True)
class HeldOut:
    """Pairs in [0, 1]: target (M, 3, S, S) and the LR pictures (M, 3, h, w) at their own size."""

    target: Tensor
    lr: Tensor

    def __post_init__(self) -> None:
        """Raises ValueError where they do not belong together."""
        if len(self.target) != len(self.lr) or not len(self.target):
            raise UserError(f"{len(self.target)} targets and {len(self.lr)} LR pictures: as many of both are needed")


def held_out_crops(folder: Path, size: int, count: int) -> Tensor:
    """Up to `count` windows (M, 3, size, size) in [0, 1], evenly chosen from all that the folder's pictures hold.

    folder: pictures, searched recursively, or `HR` with pictures. Raises FileNotFoundError when none is that large.
    """
    inner = folder / HR_FOLDER
    found = [picture[:, top:top + size, left:left + size]
             for picture in _pictures(inner if inner.is_dir() else folder) for top, left in _places(picture, size)]
    return torch.stack(_some(found, folder, size, count))


def pairs_of_folder(folder: Path, size: int, count: int) -> HeldOut:
    """As `held_out_crops`, of pictures in `HR` and their LR pictures of the same name in `LR`.

    Raises FileNotFoundError as well where a scale is no whole number, the same everywhere, that divides `size`.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for source in pictures_in(folder / LR_FOLDER):
        reference = matching_reference(source)
        if reference is not None:
            found += _pair_windows(source, reference, size)
    chosen = _some(found, folder, size, count)
    return HeldOut(torch.stack([target for target, _ in chosen]), torch.stack([lr for _, lr in chosen]))


def held_out(folder: str | None, size: int, count: int, degrade: Degrader,
             crops: SampleSource | None = None) -> HeldOut:
    """The validation pairs of a training run, the same in every run.

    folder: with `LR` and `HR`, or plain pictures, which `degrade` (HR to LR at its own size) is applied to; without
    one, samples of `crops`, the training pictures. size: S of the model. Raises FileNotFoundError.
    """
    generator = torch.Generator().manual_seed(SEED)
    if folder is None:
        log.info("no --val_data: validation pairs are crops of the training pictures, so not quite unseen")
        target = drawn(crops, count, SEED)
    else:
        if (Path(folder) / LR_FOLDER).is_dir() and (Path(folder) / HR_FOLDER).is_dir():
            return pairs_of_folder(Path(folder), size, count)
        target = held_out_crops(Path(folder), size, count)
    return HeldOut(target, degrade(target, generator))


def _pair_windows(source: Path, reference: Path, size: int) -> list[tuple[Tensor, Tensor]]:
    try:
        lr, hr = read_image(source), read_image(reference)
    except ImageError as error:
        log.warning("%s", error)
        return []
    scale = hr.shape[-1] // lr.shape[-1]
    if hr.shape[-2] != lr.shape[-2] * scale or hr.shape[-1] != lr.shape[-1] * scale or size % scale:
        log.warning("%s is left out: %s is not a whole number of times larger that divides %d", source, reference, size)
        return []
    side = size // scale
    return [(hr[:, top * scale:top * scale + size, left * scale:left * scale + size],
             lr[:, top:top + side, left:left + side]) for top, left in _places(lr, side)]


def _pictures(folder: Path) -> Iterator[Tensor]:
    if not folder.is_dir():
        raise FileNotFoundError(f"--val_data {folder}: no such folder")
    folders = (folder, *sorted(path for path in folder.rglob("*") if path.is_dir()))
    for path in (path for each in folders for path in pictures_in(each)):
        try:
            yield read_image(path)
        except ImageError as error:
            log.warning("%s", error)


def _places(picture: Tensor, size: int) -> list[tuple[int, int]]:
    """Top left corners of the windows side by side in the middle of a picture (3, H, W)."""
    rows, columns = picture.shape[-2] // size, picture.shape[-1] // size
    top, left = (picture.shape[-2] - rows * size) // 2, (picture.shape[-1] - columns * size) // 2
    return [(top + row * size, left + column * size) for row in range(rows) for column in range(columns)]


def _some(found: list, folder: Path, size: int, count: int) -> list:
    """`count` of the windows, evenly spread."""
    if not found:
        raise FileNotFoundError(f"--val_data {folder}: no picture of at least {size}x{size} pixels that can be read")
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]
