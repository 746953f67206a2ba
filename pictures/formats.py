"""Which files are pictures, what each kind can hold, which HR picture belongs to an LR one; and libvips.

pyvips is imported inside functions only, for the library takes a while to start.
"""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import features

from utils.errors import UserError

FORMATS = {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}
INTERPRETATIONS = {np.dtype(np.uint8): {1: "b-w", 2: "b-w", 3: "srgb", 4: "srgb"},
                   np.dtype(np.uint16): {1: "grey16", 2: "grey16", 3: "rgb16", 4: "rgb16"}}

LR_FOLDER, HR_FOLDER, RESULT_FOLDER = "LR", "HR", "VARPrediction"
LR_ENDING = re.compile(r"(_LR)?(_?[xX][2348])?$", re.ASCII)  # of DIV2K, RealSR and others


class ImageError(UserError):
    """A picture file that cannot be read or written; one line with the file and the reason."""


@dataclass(frozen=True)
class Kind:
    """What files of one kind can hold. `max_side` is in pixels; None where nothing real comes near it."""

    deep: bool = False  # 16 bit a sample
    alpha: bool = True
    profile: bool = True  # a colour profile; the writer's limit, not always that of the format
    max_side: int | None = None


AVIF = (".avif",) if features.check("avif") else ()
HEIF = (".heic", ".heif") if find_spec("pillow_heif") else ()
JPEG_XL = (".jxl",) if find_spec("pillow_jxl") else ()
JPEG, TIFF = (".jpg", ".jpeg", ".jfif", ".jpe"), (".tif", ".tiff")
SUFFIXES = (".png", *JPEG, ".webp", ".bmp", *TIFF, ".gif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", *AVIF, *HEIF,
            *JPEG_XL)
# What would be read if a package were there, and what installs it.
PACKAGES = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin",
            ".avif": "a Pillow with AVIF support"}
NEEDED = {suffix: package for suffix, package in PACKAGES.items() if suffix not in SUFFIXES}
KINDS = {
    ".png": Kind(deep=True),
    **dict.fromkeys(TIFF, Kind(deep=True)),
    **dict.fromkeys(JPEG, Kind(alpha=False, max_side=65_500)),
    ".webp": Kind(max_side=16_383),
    ".bmp": Kind(alpha=False, profile=False),
    **dict.fromkeys(AVIF, Kind(max_side=65_535)),
    **dict.fromkeys(HEIF, Kind(max_side=8_192)),
    **dict.fromkeys(JPEG_XL, Kind(profile=False)),
}
WRITABLE = tuple(KINDS)


def register_plugins() -> None:
    """Make Pillow read and write HEIC and JPEG XL where their packages are installed."""
    if HEIF:
        from pillow_heif import register_heif_opener
        register_heif_opener()
    if JPEG_XL:
        import pillow_jxl  # noqa: F401 - registers itself


@cache
def vips() -> ModuleType:
    """The module, without its cache of operations: it would answer from files that have changed since."""
    import pyvips
    logging.getLogger("pyvips").setLevel(logging.WARNING)  # it tells of every thread pool
    pyvips.cache_set_max(0)
    return pyvips


def reason(error: Exception) -> str:
    """The first line that says something in a libvips error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("unable to")), lines[0] if lines else "unknown")


class InputError(UserError):
    """There is nothing to work on; the message names the place that was searched."""


def pictures_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder, sorted by name; a folder may be called like a picture."""
    return [path for path in _files_in(folder) if path.suffix.lower() in SUFFIXES]


def other_files_in(folder: Path) -> list[Path]:
    """The files directly in a folder that are not read."""
    return [path for path in _files_in(folder) if path.suffix.lower() not in SUFFIXES]


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())


def folders_below(folder: Path, unreadable: Callable[[OSError], None], recursive: bool = True,
                  without: Path | None = None) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, each with the names of its files, sorted. Hidden ones are left out; folders behind
    links are looked into, each once. without: a folder below that is not looked into."""
    seen = {os.path.realpath(without)} - {os.path.realpath(folder)} if without is not None else set()
    for parent, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        yield Path(parent), sorted(name for name in names if not name.startswith("."))


def matching_reference(source: Path) -> Path | None:
    """The HR picture of an LR picture, in the folder `HR` beside its own, by `original_of`."""
    folder = source.parent.parent / HR_FOLDER
    if source.parent.name != LR_FOLDER or not folder.is_dir():
        return None
    by_stem = _by_stem(folder, folder.stat().st_mtime_ns)
    name = original_of(source.stem, by_stem)
    return by_stem[name] if name is not None else None


@lru_cache(maxsize=8)
def _by_stem(folder: Path, changed: int) -> dict[str, Path]:
    """A folder's pictures by stem; `changed`: a folder that changes is looked at again."""
    return {path.stem: path for path in reversed(pictures_in(folder))}


def original_of(stem: str, originals: Collection[str]) -> str | None:
    """Which of the originals' stems belongs to a picture's: the same one, or the one without what data sets put behind
    it for LR pictures (`0801x4`, `0801_x4`, `0801_LR`, `0801_LRx4`)."""
    return next((name for name in (stem, LR_ENDING.sub("", stem)) if name in originals), None)
