"""Crops with their classes from folders: `trainset/{class}/**`, a class a folder."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .entries import Failures
from .photo_crops import CACHE_FOLDER, MIRRORED, PhotoCrops
from .positions import Stream, random_at

ANY_DETAIL = 0.0


def class_folders(root: str | os.PathLike) -> list[Path]:
    """A folder of pictures for each class, in the order of their names. Raises FileNotFoundError without any."""
    found = Path(root).iterdir() if Path(root).is_dir() else ()
    folders = sorted(path for path in found if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise FileNotFoundError(f"{root} holds no class folders: put each class's pictures into {root}/CLASS")
    return folders


class ClassCrops:
    """Random crops, at times mirrored, every class as often as any other."""

    def __init__(self, root: str | os.PathLike, crop_size: int, *, cache: str | os.PathLike | None = None,
                 level_weights: Sequence[float] = (0.5, 0.5), symmetries: int = MIRRORED) -> None:
        """root: holds a folder of pictures for each class (`class_folders`), which are numbered in their order.

        level_weights: how often a picture is used at full and at half size; symmetries: see `PhotoCrops`; a wall stays
        a wall in a mirror, but not upside down.
        Raises FileNotFoundError without such folders, or for one without a usable picture.
        """
        folders = class_folders(root)
        self.names = tuple(folder.name for folder in folders)
        cache = cache or Path(root).resolve().parent / CACHE_FOLDER
        self.failures = Failures()
        self._crops = [PhotoCrops(folder, crop_size, cache=cache, level_weights=level_weights, min_detail=ANY_DETAIL,
                                  symmetries=symmetries, failures=self.failures) for folder in folders]

    def __len__(self) -> int:
        """Pictures of all classes, an epoch."""
        return sum(map(len, self._crops))

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """The crop of a position of the endless row of samples, (S, S, 3) uint8, and its class."""
        label = int(random_at(seed, Stream.CLASS, position).integers(len(self.names)))
        return self._crops[label].sample(position, seed)[0], label
