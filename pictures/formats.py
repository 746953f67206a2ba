"""Which files are pictures, what each kind can hold, which HR picture belongs to an LR one; and libvips.

pyvips is imported inside functions only, for the library takes a while to start.
"""
from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
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
JPEG, TIFF = (".jpg", ".jpeg"), (".tif", ".tiff")
SUFFIXES = (".png", *JPEG, ".webp", ".bmp", *TIFF, ".gif", ".ppm", ".pgm", *AVIF, *HEIF, *JPEG_XL)
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
    """Picture files directly in a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def matching_reference(source: Path) -> Path | None:
    """The HR picture of an LR picture: the same stem in the folder `HR` beside its own."""
    folder = source.parent.parent / HR_FOLDER
    if source.parent.name != LR_FOLDER or not folder.is_dir():
        return None
    return next((p for p in pictures_in(folder) if p.stem == source.stem), None)
