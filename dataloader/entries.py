"""What a training run reads, as one list: pictures of folders, of text files with weights, and of tar shards.

Shards in WebDataset's layout (plain tar files of pictures) are indexed instead of streamed: the place of every picture
in its shard is noted once, and any of them is then read alone. So a draw is uniform over all shards without a
shuffling buffer, and a run resumes exactly from a number. The price is that shards must be local, uncompressed files.
"""
from __future__ import annotations

import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pictures.formats import NEEDED, SUFFIXES, ImageError, folders_below
from pictures.picture import read_picture
from utils.errors import UserError

log = logging.getLogger(__name__)

SHARD, COMMENT, SEPARATOR = ".tar", "#", ","
# What reading an entry or its cached pixels raises for a damaged, missing or foreign file; ImageError is a ValueError.
UNREADABLE = (OSError, ValueError, EOFError)
LEVEL_8_IN_16 = 257  # 65535 / 255
WHITE = 255
MAX_PICTURE = 2 ** 30  # bytes of a picture in a shard: it is read at once


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture of a list: a file, or `size` bytes from `offset` on of the shard `path`.

    weight: how often it is drawn, 1 being usual. member: its name in the shard.
    """

    path: Path
    weight: float = 1.0
    member: str | None = None
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"


def find_entries(root: str | os.PathLike) -> list[Entry]:
    """All pictures of `root`: a folder (searched recursively, shards included), a shard, a picture or a text file.

    A text file holds `path` or `path, weight` a line, relative to its own folder: of a picture, a folder or a shard,
    whose pictures all get the weight (0 leaves them out); `#` starts a comment line. Hidden files are left out.
    Listed pictures need not exist: what cannot be read is skipped when it is drawn.
    Raises FileNotFoundError when `root` does not exist, ValueError for a malformed line.
    """
    root = Path(root)
    if root.is_dir():
        return _in_folder(root, 1.0)
    if not root.is_file():
        raise FileNotFoundError(f"{root} not found: name a folder of pictures, a text file of paths or a {SHARD} "
                                "shard; `python -m dataloader.assemble.photos` assembles a folder of photographs")
    if _is_picture(root.name):
        return [Entry(root)]
    return _in_shard(root, 1.0) if root.suffix.lower() == SHARD else _in_text(root)


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _in_folder(folder: Path, weight: float) -> list[Entry]:
    files = sorted(_files_below(folder))
    return [entry for path in files for entry in
            (_in_shard(path, weight) if path.suffix.lower() == SHARD else [Entry(path, weight)])]


def _files_below(folder: Path) -> Iterator[Path]:
    """Pictures and shards; folders behind links are followed, each once."""
    def unreadable(error: OSError) -> None:
        log.warning("skipped folder %s: %s", error.filename, error.strerror)
    unknown: Counter[str] = Counter()
    for parent, names in folders_below(folder, unreadable):
        for name in names:
            if _is_picture(name) or name.lower().endswith(SHARD):
                yield parent / name
            elif (suffix := PurePosixPath(name).suffix.lower()) in NEEDED:
                unknown[suffix] += 1
    for suffix, count in sorted(unknown.items()):
        log.warning("%s: %d %s files are left out: they need %s", folder, count, suffix, NEEDED[suffix])


def _in_shard(path: Path, weight: float) -> list[Entry]:
    """The pictures of a shard. What a damaged one holds before the damage counts."""
    from .shards import ShardError, members  # folders of pictures, the usual case, do without it
    entries: list[Entry] = []
    odd = 0
    try:
        if not path.is_file():
            raise ShardError("no file")
        with open(path, "rb") as shard:
            for member in members(shard):
                if not _is_picture(member.name):
                    continue
                if 0 < member.size <= MAX_PICTURE:
                    entries.append(Entry(path, weight, member.name, member.offset, member.size))
                else:
                    odd += 1
    except (ShardError, OSError) as error:
        log.warning("%s is no plain tar file or damaged (%s): %d pictures of it are used", path, error, len(entries))
    if odd:
        log.warning("%s: %d pictures are left out, which are empty or larger than %d bytes", path, odd, MAX_PICTURE)
    return entries


def _in_text(path: Path) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text file of `path[, weight]` lines, and no picture or {SHARD} shard") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(COMMENT):
            continue
        name, weight = _name_and_weight(line)
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{path}, line {number}: a weight must be a number from 0 on, got {line.strip()!r}")
        if weight:
            entries += _listed(path.parent / name, weight, f"{path}, line {number}")
    return entries


def _name_and_weight(line: str) -> tuple[str, float]:
    """A comma that no number follows belongs to the path."""
    name, comma, weight = line.rpartition(SEPARATOR)
    try:
        return (name.strip(), float(weight)) if comma else (line.strip(), 1.0)
    except ValueError:
        return line.strip(), 1.0


def _listed(path: Path, weight: float, place: str) -> list[Entry]:
    if _is_picture(path.name):  # not looked for: there may be millions
        return [Entry(path, weight)]
    if path.is_dir():
        return _in_folder(path, weight)
    if path.suffix.lower() == SHARD and path.is_file():
        return _in_shard(path, weight)
    raise UserError(f"{place}: {path} is no picture (known: {' '.join(SUFFIXES)}), folder or {SHARD} shard")


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
