"""The paper's crops, one a picture: decoded when they are drawn, for data sets too large for a cache."""
from __future__ import annotations

import os

import numpy as np
from PIL import Image

from models.config import HIGH_QUALITY, LOW_QUALITY
from utils.errors import UserError

from .entries import UNREADABLE, Entry, Failures, find_entries, read_entry
from .positions import PictureOrder, Stream, random_at


class CentreCrops:
    """Short side to 1.25 S (class 0) or S (class 1), centre crop S, random flip."""

    def __init__(self, root: str | os.PathLike, size: int = 512, *, label: int = HIGH_QUALITY,
                 enlarge: float | None = None, flip: bool = True) -> None:
        """root: a folder, a text file or a shard (`find_entries`) of pictures of one class. enlarge: of the short side
        before the cut; 1.25 for high quality and 1 for low quality if not given. flip: mirror every other crop.

        Raises FileNotFoundError without pictures, ValueError for bad settings or a bad list.
        """
        enlarge = (1.0 if label == LOW_QUALITY else 1.25) if enlarge is None else enlarge
        if size < 1 or enlarge < 1:
            raise UserError(f"size must be positive and enlarge at least 1, got {size} and {enlarge}")
        self.size, self.short_side, self.label, self.flip = size, round(size * enlarge), label, flip
        self.entries = find_entries(root)
        if not self.entries:
            raise FileNotFoundError(f"no pictures below {root}")
        self.failures = Failures()
        self._order = PictureOrder([entry.weight for entry in self.entries])

    def __len__(self) -> int:
        """Pictures in an epoch."""
        return len(self.entries)

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """The crop of a position of the endless row of samples, (S, S, 3) uint8, and its class.

        A picture that cannot be read is replaced by the next one of the list. Raises FileNotFoundError when none can.
        """
        flip = bool(random_at(seed, Stream.FLIP, position).integers(2))
        return self._crop(self._order.index(position, seed), flip), self.label

    def _crop(self, index: int, flip: bool) -> np.ndarray:
        for offset in range(len(self)):
            entry = self.entries[(index + offset) % len(self)]
            image = self._read(entry)
            if image is not None:
                crop = np.asarray(_centre_crop(image, self.short_side, self.size))
                return crop[:, ::-1] if flip and self.flip else crop
        raise FileNotFoundError(f"none of the {len(self)} pictures can be read, e.g. {self.entries[0]}")

    def _read(self, entry: Entry) -> Image.Image | None:
        if str(entry) in self.failures.reasons:
            return None
        try:
            return read_entry(entry)
        except UNREADABLE as error:
            self.failures.add(entry, error)
            return None


def _centre_crop(image: Image.Image, short_side: int, size: int) -> Image.Image:
    """Resize the short side (Lanczos), cut the middle square of `size` pixels."""
    factor = short_side / min(image.size)
    width, height = (max(round(side * factor), size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
