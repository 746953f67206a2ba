"""Which files are pictures, what each kind can hold, which HR picture belongs to an LR one; libvips; and what must be
known of a file before a library opens it, for some libraries decode, or read the same bytes again and again, as they
open.

pyvips is imported inside functions only, for the library takes a while to start.
"""
from __future__ import annotations

import logging
import os
import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import features

from utils.errors import UserError

from .exif import (
    MAX_BLOCK,
    MAX_PAGES,
    PREFIX,
    Harmful,
    Layout,
    directories,
    number,
    require_harmless_block,
    suppress_damage,
)

FORMATS = {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}
INTERPRETATIONS = {np.dtype(np.uint8): {1: "b-w", 2: "b-w", 3: "srgb", 4: "srgb"},
                   np.dtype(np.uint16): {1: "grey16", 2: "grey16", 3: "rgb16", 4: "rgb16"}}

LR_FOLDER, HR_FOLDER, RESULT_FOLDER = "LR", "HR", "VARPrediction"
ERROR_MAP_ENDING = "_uncertainty.png"  # behind the stem of the result that the map belongs to
LR_ENDING = re.compile(r"(_LR)?(_?[xX][2348])?$", re.ASCII)  # of DIV2K, RealSR and others


class ImageError(UserError):
    """A picture file that cannot be read or written; one line with the file and the reason."""


@dataclass(frozen=True)
class Kind:
    """What files of one kind can hold. `max_side` is in pixels; None where nothing real comes near it."""

    deep: bool = False  # 16 bit a sample
    alpha: bool = True
    profile: bool = True  # a colour profile; the writer's limit, not always that of the format
    gray: bool = True  # read again as gray, and not as RGB, beside which the profile of a gray picture is of no use
    gray_alpha: bool = True  # the same of gray with alpha
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
    ".webp": Kind(max_side=16_383, gray=False, gray_alpha=False),
    ".bmp": Kind(alpha=False, profile=False),
    **dict.fromkeys(AVIF, Kind(max_side=65_535, gray_alpha=False)),
    **dict.fromkeys(HEIF, Kind(max_side=8_192, gray_alpha=False)),
    **dict.fromkeys(JPEG_XL, Kind(profile=False)),
}
WRITABLE = tuple(KINDS)
# Pillow's names of the kinds that are read, whatever a file is called (JPEG stands for MPO too); it knows others that
# start foreign programs (EPS) or decode before their size is known (ICO).
READ_BY_PILLOW = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if AVIF else ()),
                  *(("HEIF",) if HEIF else ()), *(("JXL",) if JPEG_XL else ()))
TGA, TGA_END = ".tga", b"TRUEVISION-XFILE.\0"
MAX_PROFILE = 2 ** 22  # bytes of a colour profile; those of presses have 2 to 3 MB

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUBFILE_TYPE, REDUCED = 254, 1
INNER_PICTURES, DNG_VERSION = 330, 50706
TIFF_WIDTH, TIFF_HEIGHT, TIFF_SAMPLES, TILE_WIDTH, TILE_HEIGHT = 256, 257, 277, 322, 323
MAX_TILE = 4096  # pixels a side, of pictures that are smaller
MAX_SAMPLES = 16  # a pixel

PNG_MAGIC, PNG_START, PNG_CHUNK_HEAD = b"\x89PNG\r\n\x1a\n", 8, 8
PNG_PROFILE = b"iCCP"
PACKED_CHUNKS = (b"zTXt", b"iTXt", PNG_PROFILE)
JPEG_MAGIC, JPEG_INDEX = b"\xff\xd8\xff", b"MPF\0"
APP1, APP2, START_OF_SCAN, END_OF_IMAGE = 0xE1, 0xE2, 0xDA, 0xD9
WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xD9), 0xFF)
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
MAX_SCANS = 100  # of a progressive file, usually 10; each costs as much as decoding the whole picture
GIF_MAGIC, GIF_SIDES, GIF_FLAGS, GIF_HEADER = b"GIF8", 6, 10, 13
GIF_BLOCK, GIF_IMAGE, GIF_COMMENT, GIF_END = re.compile(rb"[!,;]"), b",", b"!\xfe", b";"
GIF_IMAGE_HEADER, GIF_IMAGE_FLAGS = 11, 9  # from the byte that announces it to the first block of its pixels
JXL_CODESTREAM, JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
JXL_BOXES = {b"jxlc": 0, b"jxlp": 4}  # of a container, that hold the codestream, and what stands before it
JXL_EXIF, JXL_EXIF_START = b"Exif", 4  # a box, and the length of what stands before its TIFF header
JXL_HEAD = 16  # bytes that hold the sides
JXL_BITS = (9, 13, 18, 30)  # of a side
JXL_TURNED = 4  # from here on orientations, which count from 0, exchange the sides
JXL_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height
EXIF_START = re.compile(rb"II\*\0|MM\0\*")
MAX_SEARCHED, MAX_BLOCKS = 2 ** 24, 100  # bytes of a block of EXIF data, and blocks in a file of many pictures
HEAD = 12  # bytes that tell the kind


def require_writable(path: Path) -> None:
    """Raise ImageError for a file of a kind that cannot be written, by its suffix."""
    if path.suffix.lower() not in WRITABLE:
        raise ImageError(f"{path}: cannot be written (kinds that can: {' '.join(WRITABLE)})")


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
    _log_warnings_alone(pyvips)
    pyvips.cache_set_max(0)
    pyvips.block_untrusted_set(True)  # its readers of kinds that we never ask for
    return pyvips


def _log_warnings_alone(pyvips: ModuleType) -> None:
    """Take the log handler of pyvips off libvips' messages about every thread pool it opens.

    The handler is Python that C calls. A Ctrl-C that comes while it runs is raised in it, and there it is printed and
    lost: the program goes on.
    """
    logging.getLogger("pyvips").setLevel(logging.WARNING)
    levels = pyvips.GLogLevelFlags
    pyvips._remove_log_handler()
    pyvips._log_handler_id = pyvips.glib_lib.g_log_set_handler(
        b"VIPS", levels.LEVEL_WARNING | levels.LEVEL_CRITICAL | levels.LEVEL_ERROR | levels.FLAG_FATAL
        | levels.FLAG_RECURSION, pyvips._log_handler_cb, pyvips.ffi.NULL)


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


def pillow_formats(path: Path) -> tuple[str, ...]:
    """Pillow's names of the kinds that a file may be. TGA files have nothing at their start that tells them from
    others, and not always something at their end: what is called so is one. Raises OSError."""
    with open(path, "rb") as stream:
        stream.seek(-min(len(TGA_END), stream.seek(0, os.SEEK_END)), os.SEEK_END)
        is_tga = path.suffix.lower() == TGA or stream.read() == TGA_END
    return (*READ_BY_PILLOW, "TGA") if is_tga else READ_BY_PILLOW


def starts_as_tiff(path: Path) -> bool:
    """By its first bytes."""
    with open(path, "rb") as stream:
        return stream.read(4) in TIFF_MAGIC


def require_harmless(path: Path) -> None:
    """Raise ImageError for a file whose structure would make a library take far more memory or time than its pixels
    need; their number is not looked at. What is only damaged is left to the library. Raises OSError.
    """
    with open(path, "rb") as stream:
        head = stream.read(HEAD)
        check = next((check for place, magic, check in CHECKS if head.startswith(magic, place)), None)
        try:
            if check is not None:
                with suppress_damage():
                    check(stream)
        except Harmful as error:
            raise ImageError(f"{path}: is not opened: {error}") from error


def _check_tiff(stream: BinaryIO) -> None:
    """Only the first directory: of others see `tiff_pages`."""
    for raw, layout in directories(stream):
        _require_usual_tiles(raw, layout)
        # a pyramid's first directory has the picture itself, that of cameras a thumbnail
        is_thumbnail = number(raw, SUBFILE_TYPE, layout) & REDUCED and INNER_PICTURES in raw
        if is_thumbnail or DNG_VERSION in raw:
            raise Harmful("a raw photograph, whose sensor data are not read: develop it to TIFF or JPEG")
        return


def _require_usual_tiles(raw: Mapping[int, bytes], layout: Layout) -> None:
    for side, tile in ((TIFF_WIDTH, TILE_WIDTH), (TIFF_HEIGHT, TILE_HEIGHT)):
        pixels = number(raw, tile, layout)
        if pixels > max(number(raw, side, layout), MAX_TILE):
            raise Harmful(f"tiles of {pixels} pixels a side, larger than the picture")
    if (samples := number(raw, TIFF_SAMPLES, layout, 1)) > MAX_SAMPLES:
        raise Harmful(f"{samples} channels are not supported, 1 to 4 are")


def tiff_pages(path: Path) -> Iterator[int]:
    """Numbers of a file's pictures in its own count; reduced versions of others are none. Raises ValueError, of which
    Harmful is one, for the first page that is damaged."""
    with open(path, "rb") as stream:
        only_reduced = True
        for page, (raw, layout) in enumerate(directories(stream)):
            _require_usual_tiles(raw, layout)
            if not number(raw, SUBFILE_TYPE, layout) & REDUCED:
                only_reduced = False
                yield page
    if only_reduced:
        yield 0


def _check_jpeg(stream: BinaryIO) -> None:
    """Pillow reads the EXIF block and the index of further pictures as it opens a file."""
    stream.seek(0)
    data = stream.read()
    exif, place, scans = bytearray(), 2, 0
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3 and data[place + 1] != END_OF_IMAGE:
        marker = data[place + 1]
        if marker in WITHOUT_LENGTH:
            place += 1
            continue
        length = struct.unpack_from(">H", data, place + 2)[0]
        segment = data[place + 4:place + 2 + length]
        place += 2 + max(length, 2)
        if marker == APP1 and segment.startswith(PREFIX):
            exif += segment[len(PREFIX) if exif else 0:]
            if len(exif) > MAX_SEARCHED:
                raise Harmful(f"more than {MAX_SEARCHED} bytes of EXIF data")
        elif marker == APP2 and segment.startswith(JPEG_INDEX):
            require_harmless_block(segment[len(JPEG_INDEX):])
        elif marker == START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise Harmful(f"more than {MAX_SCANS} scans")
            following = NEXT_MARKER.search(data, place)
            place = following.start() if following else len(data)
    require_harmless_block(bytes(exif))


def _check_boxes(stream: BinaryIO) -> None:
    """AVIF and HEIC: libraries read the EXIF data, which may be anywhere, as they open a file."""
    stream.seek(0)
    data = stream.read()
    for count, found in enumerate(EXIF_START.finditer(data)):
        if count > MAX_BLOCKS:
            raise Harmful(f"more than {MAX_BLOCKS} blocks of EXIF data")
        require_harmless_block(data[found.start():found.start() + MAX_SEARCHED])


def _check_png(stream: BinaryIO) -> None:
    """libvips unpacks texts and profiles of any length."""
    for name, length in png_structure(stream):
        limit = MAX_PROFILE if name == PNG_PROFILE else MAX_BLOCK
        if name in PACKED_CHUNKS and length <= limit:
            with suppress(zlib.error):
                unpacked_chunk(name, stream.read(length), limit)


def png_structure(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Names and lengths of a PNG file's chunks but the last one; the stream stands at their data."""
    place = stream.seek(PNG_START)
    while len(head := stream.read(PNG_CHUNK_HEAD)) == PNG_CHUNK_HEAD:
        length, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            return
        yield name, length
        place = stream.seek(place + 12 + length)


def unpacked_chunk(name: bytes, data: bytes, limit: int = MAX_BLOCK) -> tuple[bytes, bytes]:
    """Keyword and content of a text or profile chunk (PNG, 11.3.3), unpacked. Raises Harmful where that is longer than
    the limit, zlib.error where it is damaged."""
    keyword, _, rest = data.partition(b"\0")
    packed = name in (b"zTXt", PNG_PROFILE)
    if name == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        rest = rest[1:]
    if packed:
        unpacker = zlib.decompressobj()
        rest = unpacker.decompress(rest, limit)
        if unpacker.unconsumed_tail:
            raise Harmful(f"a {name.decode()} chunk that grows to more than {limit} bytes")
    return keyword, rest


@dataclass(frozen=True)
class GifLayout:
    """How many pictures a GIF file holds, and the sides of the canvas that all of them lie on, in pixels."""

    frames: int
    width: int
    height: int


def gif_layout(stream: BinaryIO) -> GifLayout:
    """Without decoding: Pillow enlarges its canvas to each of the pictures. Raises Harmful for too many of them, and
    for comments that Pillow would take a time for that grows with the square of their length."""
    stream.seek(0)
    data = stream.read()
    width, height = struct.unpack_from("<HH", data, GIF_SIDES)
    place = GIF_HEADER + _color_table(data[GIF_FLAGS])
    frames, comments = 0, 0
    while (block := GIF_BLOCK.search(data, place)) and block[0] != GIF_END:
        place = block.start()
        is_comment = data.startswith(GIF_COMMENT, place)
        if block[0] == GIF_IMAGE:
            frames += 1
            left, top, columns, rows = struct.unpack_from("<4H", data, place + 1)
            width, height = max(width, left + columns), max(height, top + rows)
            place += GIF_IMAGE_HEADER + _color_table(data[place + GIF_IMAGE_FLAGS])
        else:
            place += len(GIF_COMMENT)
        start = place
        while place < len(data) and data[place]:
            place += data[place] + 1
        comments += (place - start) * is_comment
        place += 1
        if frames > MAX_PAGES or comments > MAX_BLOCK:
            raise Harmful(f"more than {MAX_PAGES} pictures or {MAX_BLOCK} bytes of comments")
    return GifLayout(max(frames, 1), width, height)


def _color_table(flags: int) -> int:
    """Bytes of the table that follows, by the flags of a screen or an image."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


class _Bits:
    """Numbers of few bits, the lowest first, as JPEG XL has them."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        """The next number."""
        found = self._value & (1 << count) - 1
        self._value >>= count
        return found


@dataclass(frozen=True)
class JxlHead:
    """Sides in pixels of a JPEG XL picture as it is decoded, upright by its own account; its EXIF block."""

    width: int
    height: int
    exif: bytes | None


def early_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of what Pillow would take memory for before it says how large a picture is; None of kinds where
    it does not. Raises OSError and ImageError."""
    with open(path, "rb") as stream:
        layout: GifLayout | JxlHead | None = None
        if stream.read(len(GIF_MAGIC)) == GIF_MAGIC:
            try:
                layout = gif_layout(stream)
            except Harmful as error:
                raise ImageError(f"{path}: is not opened: {error}") from error
            except (struct.error, IndexError):  # cut off, as Pillow will see
                return None
    layout = layout or jxl_head(path)
    return None if layout is None else (layout.width, layout.height)


def jxl_head(path: Path) -> JxlHead | None:
    """What a JPEG XL file says of its picture (ISO/IEC 18181-1, 9.2); None of other files. pillow_jxl decodes as it
    opens a file. Raises OSError."""
    with open(path, "rb") as stream:
        head = stream.read(len(JXL_CONTAINER))
        if not head.startswith((JXL_CODESTREAM, JXL_CONTAINER)):
            return None
        boxes = {} if head.startswith(JXL_CODESTREAM) else _jxl_boxes(stream)
        starts = [place + JXL_BOXES[name] for name, (place, _) in boxes.items() if name in JXL_BOXES]
        stream.seek(min(starts, default=0))
        width, height = _jxl_sides(stream.read(JXL_HEAD))
        exif = None
        if JXL_EXIF in boxes:
            place, length = boxes[JXL_EXIF]
            stream.seek(place + JXL_EXIF_START)
            exif = stream.read(min(max(length - JXL_EXIF_START, 0), MAX_BLOCK))
    return JxlHead(width, height, exif)


def _jxl_sides(codestream: bytes) -> tuple[int, int]:
    bits = _Bits(codestream[len(JXL_CODESTREAM):])
    is_small = bits.take(1)

    def side() -> int:
        if is_small:
            return 8 * (bits.take(5) + 1)
        return bits.take(JXL_BITS[bits.take(2)]) + 1
    height = side()
    ratio = JXL_RATIOS[bits.take(3)]
    width = side() if ratio is None else height * ratio[0] // ratio[1]
    all_default, extra_fields = bits.take(1), bits.take(1)
    turned = not all_default and extra_fields and bits.take(3) >= JXL_TURNED
    return (height, width) if turned else (width, height)


def _jxl_boxes(stream: BinaryIO) -> dict[bytes, tuple[int, int]]:
    """Where the content of the first box of each name begins, and how long it is."""
    found: dict[bytes, tuple[int, int]] = {}
    place, end = 0, stream.seek(0, os.SEEK_END)
    while place < end:
        stream.seek(place)
        length, name, long_length = struct.unpack(">I4sQ", stream.read(16).ljust(16, b"\0"))
        head = 16 if length == 1 else 8
        length = max(long_length if length == 1 else length or end - place, head)
        found.setdefault(name, (place + head, length - head))
        place += length
    return found


# By which bytes a file has where.
CHECKS: tuple[tuple[int, bytes, Callable[[BinaryIO], object]], ...] = (
    *((0, magic, _check_tiff) for magic in TIFF_MAGIC), (0, JPEG_MAGIC, _check_jpeg), (0, PNG_MAGIC, _check_png),
    (4, b"ftyp", _check_boxes),
)
