"""Which kinds of picture files are read and written here, and what each of them can hold."""
from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from PIL import features


class ImageError(ValueError):
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
