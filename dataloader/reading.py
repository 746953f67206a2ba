"""Reading one training picture as 8-bit RGB, and keeping count of those that cannot be read."""
from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pictures.formats import ImageError
from pictures.picture import read_picture

from .listing import Entry

log = logging.getLogger(__name__)

# What reading an entry or its cached pixels raises for a damaged, missing or foreign file; ImageError is a ValueError.
UNREADABLE = (OSError, ValueError, EOFError)
LEVEL_8_IN_16 = 257  # 65535 / 255
WHITE = 255


def read_rgb(path: Path) -> Image.Image:
    """Decode a picture of any kind as 8-bit sRGB, upright, transparent parts on white. Raises ImageError."""
    picture = read_picture(path)
    image = Image.fromarray(_eight_bits(picture.color).repeat(3 if picture.is_gray else 1, axis=2))
    if picture.alpha is not None:
        white = Image.new("RGB", image.size, (WHITE,) * 3)
        image = Image.composite(image, white, Image.fromarray(_eight_bits(picture.alpha)))
    return image


def read_entry(entry: Entry) -> Image.Image:
    """`read_rgb` of an entry of a list. Raises ImageError naming the entry, OSError for its shard."""
    if entry.member is None:
        return read_rgb(entry.path)
    with open(entry.path, "rb") as shard, tempfile.TemporaryDirectory() as folder:
        shard.seek(entry.offset)
        # the decoders want a file of their own: libvips cannot start in the middle of one
        file = Path(folder, "picture" + PurePosixPath(entry.member).suffix)
        file.write_bytes(shard.read(entry.size))
        try:
            return read_rgb(file)
        except ImageError as error:
            raise ImageError(str(error).replace(str(file), str(entry))) from error


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + LEVEL_8_IN_16 // 2) // LEVEL_8_IN_16).astype(np.uint8)


class Failures:
    """Pictures that were skipped: each is named in the log once, however often it is drawn."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.announce = True  # False in worker processes: the one that gathers their news speaks for all
        self._news: list[tuple[str, str]] = []

    def add(self, name: object, reason: object) -> None:
        """Note a picture that was skipped."""
        name, reason = str(name), str(reason)
        if name in self.reasons:
            return
        self.reasons[name] = reason
        self._news.append((name, reason))
        if self.announce:
            log.warning("skipped %s (%d so far)", reason if name in reason else f"{name}: {reason}", len(self))

    def update(self, news: Iterable[tuple[str, str]]) -> None:
        """Note what another process met."""
        for name, reason in news:
            self.add(name, reason)

    def take_news(self) -> list[tuple[str, str]]:
        """(name, reason) of what was added since the last call."""
        news, self._news = self._news, []
        return news

    def __len__(self) -> int:
        return len(self.reasons)
