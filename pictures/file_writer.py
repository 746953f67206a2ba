"""Finished pixels into a picture file with its metadata; until they are all there they wait in memory or a file."""
from __future__ import annotations

import io
import json
import logging
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import exif as exif_block
from .exif import LONG8, SHORT, Entry, Layout, directory_bytes
from .formats import AVIF, FORMATS, INTERPRETATIONS, JPEG, TIFF, register_plugins, vips
from .picture import Metadata

log = logging.getLogger(__name__)

STRIP_BYTES = 4 * 2 ** 20
LAYOUT = Layout("<" if sys.byteorder == "little" else ">", big=True)
PIXELS_START = 16  # behind the header
SOFTWARE, SETTINGS = "Software", "VARSR"  # keywords of the text in PNG files
PNG_COMPRESSION, PNG_FILTER = 2, "sub"
TIFF_COMPRESSION_LEVEL = 2
TIFF_ROWS = 64  # of a strip
CLASSIC_TIFF_BYTES = 3_500_000_000  # of pixels; a classic TIFF file ends at 4 GiB
JPEG_SEGMENT_BYTES = 65_500  # that hold an EXIF block
DEFAULT_RESOLUTION = 72 / 25.4  # pixels per millimetre


class PixelStore:
    """Pixels (height, width, channels) of uint8 or uint16, written by rows, then read as one picture.

    With a path they lie in that file, an uncompressed BigTIFF, which is created or, having the right size, taken over
    with what it holds. It is written and read in pieces, never mapped whole: the pixels take no memory, and a full
    disk is an OSError.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, path: Path | None = None) -> None:
        self.shape, self.dtype, self.path = shape, np.dtype(dtype), path
        self.row_bytes = shape[1] * shape[2] * self.dtype.itemsize
        self._memory: np.ndarray | None = None
        self._file: int | None = None
        if path is None:
            self._memory = np.zeros(shape, self.dtype)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        end = (PIXELS_START + shape[0] * self.row_bytes + 1) // 2 * 2
        directory = self._directory(end)
        size, found = end + len(directory), os.fstat(self._file).st_size
        if found not in (0, size):  # of another run; never an empty one, which another process may be filling
            os.ftruncate(self._file, 0)
        if found != size:
            self._create(size, end, directory)

    def _create(self, size: int, end: int, directory: bytes) -> None:
        """Take the room on the disk now: a full disk shows before hours of work, not after."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)
            else:
                os.ftruncate(self._file, size)
            mark = b"II" if LAYOUT.order == "<" else b"MM"
            self._put(0, mark + struct.pack(LAYOUT.order + "HHHQ", 43, 8, 0, end))
            self._put(end, directory)
        except BaseException:
            self.remove()
            raise

    def _directory(self, end: int) -> bytes:
        """The TIFF directory of the pixels, to stand behind them."""
        height, width, channels = self.shape
        rows = max(STRIP_BYTES // self.row_bytes, 1)
        tops = range(0, height, rows)
        alpha = channels in (2, 4)
        values = {
            256: (LONG8, width), 257: (LONG8, height), 258: (SHORT, *[8 * self.dtype.itemsize] * channels),
            259: (SHORT, 1), 262: (SHORT, 2 if channels > 2 else 1),  # not compressed; RGB or black is 0
            273: (LONG8, *(PIXELS_START + top * self.row_bytes for top in tops)), 277: (SHORT, channels),
            278: (LONG8, rows), 279: (LONG8, *(min(rows, height - top) * self.row_bytes for top in tops)),
            **({338: (SHORT, 2)} if alpha else {}),  # not multiplied into the colours
        }
        entries = {tag: Entry.numbers(LAYOUT, *numbers) for tag, numbers in values.items()}
        return directory_bytes({}, entries, end, LAYOUT)

    def write(self, top: int, rows: np.ndarray) -> None:
        """Store rows (n, width, channels) from row `top` on. Raises OSError."""
        if self._memory is not None:
            self._memory[top:top + len(rows)] = rows
            return
        self._put(PIXELS_START + top * self.row_bytes, np.ascontiguousarray(rows))

    def _put(self, place: int, data: bytes | np.ndarray) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self._file, rest, place)
            rest, place = rest[written:], place + written

    def array(self) -> np.ndarray:
        """All pixels in memory."""
        if self._memory is not None:
            return self._memory
        self._require_file()
        count = int(np.prod(self.shape))
        return np.fromfile(self.path, self.dtype, count, offset=PIXELS_START).reshape(self.shape)

    def picture(self):
        """All pixels as a libvips picture, which reads them as they are needed."""
        if self._memory is None:
            self._require_file()
            return vips().Image.tiffload(os.fsencode(self.path), access="sequential")
        height, width, channels = self.shape
        picture = vips().Image.new_from_memory(self._memory, width, height, channels, FORMATS[self.dtype])
        return picture.copy(interpretation=INTERPRETATIONS[self.dtype][channels])

    def _require_file(self) -> None:
        """Raise FileNotFoundError where the file is no longer the one that was written to: pixels that nobody wrote
        must never become a result."""
        if not self.path.is_file() or not os.path.samestat(os.fstat(self._file), self.path.stat()):
            raise FileNotFoundError(f"the pixels that waited in {self.path} were removed while they were needed")

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Let go of everything, the file included."""
        self.close()
        self._memory = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Labels:
    """What goes into a file beside its pixels."""

    metadata: Metadata
    software: str | None
    settings: str | None  # JSON

    @classmethod
    def of(cls, metadata: Metadata, text: tuple[tuple[str, str], ...]) -> Labels:
        """From pairs of key and value: `Software` for itself, the others together."""
        pairs = dict(text)
        software = pairs.pop(SOFTWARE, None)
        return cls(metadata, software, json.dumps(pairs) if pairs else None)

    def exif(self, height: int, width: int) -> bytes | None:
        """The EXIF block for a result of this size; None where there is nothing to say."""
        if self.metadata.exif is None and self.software is None and self.settings is None:
            return None
        return exif_block.described(self.metadata.exif, height, width, self.software, self.settings,
                                    srgb=self.metadata.icc is None)


def encode(store: PixelStore, path: Path, suffix: str, labels: Labels, quality: int) -> None:
    """Write the pixels to `path` as a file of the kind of `suffix`. Raises OSError, ValueError and libvips' Error."""
    writer = WRITERS.get(suffix)
    if writer is not None:
        writer(store, path, labels, quality)
    else:
        _write_by_pillow(store, path, suffix, labels, quality)


def _write_png(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    picture = _labelled(store, labels, labels.exif(*store.shape[:2]))
    kind = vips().GValue.gstr_type
    for index, (key, text) in enumerate(((SOFTWARE, labels.software), (SETTINGS, labels.settings))):
        if text is not None:
            picture.set_type(kind, f"png-comment-{index}-{key}", text)
    picture.pngsave(os.fsencode(path), compression=PNG_COMPRESSION, filter=PNG_FILTER, keep=_kept(picture))


def _write_jpeg(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    block = labels.exif(*store.shape[:2])
    if block is not None and len(block) > JPEG_SEGMENT_BYTES:
        log.warning("%s: the EXIF data is too long for a JPEG file and left out", path)
        block = None
    picture = _labelled(store, labels, block)
    picture.jpegsave(os.fsencode(path), Q=quality, keep=_kept(picture))


def _write_webp(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    picture = _labelled(store, labels, labels.exif(*store.shape[:2]))
    picture.webpsave(os.fsencode(path), Q=quality, keep=_kept(picture))


def _write_avif(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    picture = _labelled(store, labels, labels.exif(*store.shape[:2]))
    picture.heifsave(os.fsencode(path), compression="av1", Q=quality, keep=_kept(picture))


def _write_tiff(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    size = store.shape[0] * store.row_bytes
    _labelled(store, labels, None).tiffsave(
        os.fsencode(path), compression="deflate", level=TIFF_COMPRESSION_LEVEL, predictor="horizontal", tile=False,
        tile_height=TIFF_ROWS, bigtiff=size > CLASSIC_TIFF_BYTES)
    block = labels.exif(*store.shape[:2])
    if block is not None:  # libvips writes none into TIFF files
        exif_block.into_tiff(path, block)


def _labelled(store: PixelStore, labels: Labels, exif: bytes | None):
    """The pixels as a libvips picture that carries its metadata."""
    resolution = exif_block.resolution(labels.metadata.exif) or (DEFAULT_RESOLUTION, DEFAULT_RESOLUTION)
    picture = store.picture().copy(xres=resolution[0], yres=resolution[1])
    kind = vips().GValue.blob_type
    blobs = {"exif-data": exif and b"Exif\0\0" + exif, "xmp-data": labels.metadata.xmp,
             "icc-profile-data": labels.metadata.icc}
    for name, blob in blobs.items():
        if blob is not None:
            picture.set_type(kind, name, blob)
    return picture


def _kept(picture) -> str:
    """Everything; without an EXIF block libvips would make one of its own."""
    return "all" if picture.get_typeof("exif-data") else "xmp:icc:other"


def _write_by_pillow(store: PixelStore, path: Path, suffix: str, labels: Labels, quality: int) -> None:
    """The kinds that libvips does not write; the pixels are in memory at once."""
    register_plugins()
    pixels, buffer = store.array(), io.BytesIO()
    exif = labels.exif(*store.shape[:2])
    options = {"exif": exif, "icc_profile": labels.metadata.icc, "xmp": labels.metadata.xmp, "quality": quality}
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, Image.registered_extensions()[suffix],
        **{name: value for name, value in options.items() if value is not None})
    path.write_bytes(buffer.getbuffer())  # Pillow itself overlooks what a full disk does not take


WRITERS: dict[str, Callable[[PixelStore, Path, Labels, int], None]] = {
    ".png": _write_png, ".webp": _write_webp, **dict.fromkeys(AVIF, _write_avif),
    **dict.fromkeys(JPEG, _write_jpeg), **dict.fromkeys(TIFF, _write_tiff),
}
