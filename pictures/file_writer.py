"""Encoding finished pixels into a picture file with its metadata."""
from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from . import exif as exif_block
from .formats import AVIF, JPEG, TIFF, register_plugins, vips
from .picture import Metadata
from .scratch import PixelStore

log = logging.getLogger(__name__)

SOFTWARE, SETTINGS = "Software", "VARSR"  # keywords of the text in PNG files
PNG_COMPRESSION, PNG_FILTER = 2, "sub"
TIFF_COMPRESSION_LEVEL = 2
TIFF_ROWS = 64  # of a strip
CLASSIC_TIFF_BYTES = 3_500_000_000  # of pixels; a classic TIFF file ends at 4 GiB
JPEG_SEGMENT_BYTES = 65_500  # that hold an EXIF block
DEFAULT_RESOLUTION = 72 / 25.4  # pixels per millimetre


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
    writer = WRITERS.get(suffix, _write_by_pillow)
    writer(store, path, labels, quality)


def _write_png(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    picture = _labelled(store, labels, labels.exif(*store.shape[:2]))
    kind = vips().GValue.gstr_type
    for index, (key, text) in enumerate(((SOFTWARE, labels.software), (SETTINGS, labels.settings))):
        if text is not None:
            picture.set_type(kind, f"png-comment-{index}-{key}", text)
    picture.pngsave(str(path), compression=PNG_COMPRESSION, filter=PNG_FILTER, keep=_kept(picture))


def _write_jpeg(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    block = labels.exif(*store.shape[:2])
    if block is not None and len(block) > JPEG_SEGMENT_BYTES:
        log.warning("%s: the EXIF data is too long for a JPEG file and left out", path)
        block = None
    picture = _labelled(store, labels, block)
    picture.jpegsave(str(path), Q=quality, keep=_kept(picture))


def _write_webp(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    picture = _labelled(store, labels, labels.exif(*store.shape[:2]))
    picture.webpsave(str(path), Q=quality, keep=_kept(picture))


def _write_avif(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    picture = _labelled(store, labels, labels.exif(*store.shape[:2]))
    picture.heifsave(str(path), compression="av1", Q=quality, keep=_kept(picture))


def _write_tiff(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    size = store.shape[0] * store.row_bytes
    _labelled(store, labels, None).tiffsave(
        str(path), compression="deflate", level=TIFF_COMPRESSION_LEVEL, predictor="horizontal", tile=False,
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


def _write_by_pillow(store: PixelStore, path: Path, labels: Labels, quality: int) -> None:
    """The kinds that libvips does not write; the pixels are in memory at once."""
    register_plugins()
    pixels, buffer = store.array(), io.BytesIO()
    exif = labels.exif(*store.shape[:2])
    options = {"exif": exif, "icc_profile": labels.metadata.icc, "xmp": labels.metadata.xmp, "quality": quality}
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, Image.registered_extensions()[path.suffix],
        **{name: value for name, value in options.items() if value is not None})
    path.write_bytes(buffer.getbuffer())  # Pillow itself overlooks what a full disk does not take


WRITERS: dict[str, Callable[[PixelStore, Path, Labels, int], None]] = {
    ".png": _write_png, ".webp": _write_webp, **dict.fromkeys(AVIF, _write_avif),
    **dict.fromkeys(JPEG, _write_jpeg), **dict.fromkeys(TIFF, _write_tiff),
}
