"""Finished pixels into a picture file of any kind, with everything that it is to say beside them.

Metadata are put in here, not by libvips, which drops the EXIF fields that it does not know and makes up a resolution.
"""
from __future__ import annotations

import io
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image

from . import exif as exif_block
from .file_reader import IPTC_RESOURCE, JFIF_MILLIMETRES, Metadata
from .formats import AVIF, JPEG, PNG_CHUNK_HEAD, TIFF, png_structure, register_plugins, vips
from .picture import IPTC_KEYWORDS, METRE, PNG_RESOLUTION, PNG_TEXTS, SETTINGS, XMP_KEYWORD, png_text

log = logging.getLogger(__name__)

SOFTWARE, COMMENT = "Software", "Comment"  # keywords of the text in PNG files, beside `SETTINGS`
# Texts of PNG files that EXIF has fields for.
TEXT_FIELDS = {"Description": exif_block.DESCRIPTION, "Author": exif_block.ARTIST, "Copyright": exif_block.COPYRIGHT}
PNG_COMPRESSION, PNG_FILTER = 2, "sub"
TIFF_COMPRESSION_LEVEL = 2
TIFF_ROWS = 64  # of a strip
CLASSIC_TIFF_BYTES = 3_500_000_000  # of pixels; a classic TIFF file ends at 4 GiB
JPEG_SEGMENT_BYTES = 65_533  # that follow a segment's length
JPEG_XMP, JPEG_PHOTOSHOP = b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0"
APP1, APP13, COM = 0xE1, 0xED, 0xFE
JPEG_START, JFIF_MARKER, JFIF_VERSION = b"\xff\xd8", b"\xff\xe0", 0x0102
JFIF_END = 20  # of the start of the file and its first segment
FULL_COLOR_QUALITY = 90  # from here on AVIF keeps colours at full resolution
SHIFTED_BYTES = 2 ** 24  # at a time
HEX_LINE = 72  # digits


class Pixels(Protocol):
    """What is written, `result_file.PixelStore`: (height, width, channels) of uint8 or uint16."""

    shape: tuple[int, int, int]
    row_bytes: int

    def array(self) -> np.ndarray:
        """All in memory."""

    def picture(self) -> object:
        """As a libvips picture."""


@dataclass(frozen=True)
class Labels:
    """What goes into a file beside its pixels. target: the file's name in the end, for warnings."""

    metadata: Metadata
    software: str | None
    settings: str | None  # JSON
    target: Path

    @classmethod
    def of(cls, metadata: Metadata, text: tuple[tuple[str, str], ...], target: Path) -> Labels:
        """From pairs of key and value: `Software` for itself, the others together."""
        pairs = dict(text)
        software = pairs.pop(SOFTWARE, None)
        return cls(metadata, software, json.dumps(pairs) if pairs else None, target)

    @cached_property
    def texts(self) -> dict[str, str]:
        """The texts of a PNG file by keyword; damaged ones are left out."""
        found = {}
        for name, data in self.metadata.chunks:
            if name in PNG_TEXTS:
                try:
                    keyword, text = png_text(name, data)
                except (ValueError, zlib.error):
                    continue
                found[keyword] = text
        return found

    @property
    def programs(self) -> str | None:
        """The programs that made the picture, in their order, this one last."""
        if self.software is None:
            return None
        before = self.texts.get(SOFTWARE) or exif_block.text_of(self.metadata.exif, exif_block.SOFTWARE) or ""
        others = [part.strip() for part in before.split(";") if part.strip() and not is_ours(part)]
        return "; ".join((*others, self.software))

    @property
    def comment(self) -> str | None:
        """The settings, where nobody else's comment stands in the EXIF field for it."""
        before = exif_block.text_of(self.metadata.exif, exif_block.USER_COMMENT)
        return self.settings if before is None or before.startswith(f'{{"{SETTINGS}"') else None

    def exif(self, height: int, width: int) -> bytes | None:
        """The EXIF block for a result of this size; None where there is nothing to say."""
        if self.metadata.exif is None and self.software is None and self.settings is None:
            return None
        texts = {tag: text for keyword, tag in TEXT_FIELDS.items() if (text := self.texts.get(keyword))}
        return exif_block.described(self.metadata.exif, exif_block.Said(
            height, width, srgb=self.metadata.icc is None, software=self.programs, comment=self.comment,
            resolution=self.metadata.resolution, texts=texts))

    def xmp(self) -> bytes | None:
        """The packet, with the settings where EXIF has no room for them."""
        packet = self.metadata.xmp
        if self.settings is None or self.comment is not None:
            return packet
        try:
            return exif_block.with_settings(packet, self.settings)
        except ValueError as error:
            log.warning("%s: does not say how it was made: its XMP cannot be added to (%s)", self.target, error)
            return packet

    def tell_losses(self, suffix: str) -> None:
        """One line for what files of a kind have no place for."""
        metadata, kind = self.metadata, suffix
        lost = []
        if kind == ".bmp":
            lost += [name for name, block in (("EXIF", metadata.exif), ("XMP", metadata.xmp)) if block]
        if kind != ".png":
            held = {SOFTWARE, SETTINGS, *TEXT_FIELDS, *((COMMENT,) if kind in JPEG else ())}
            if kind == ".bmp":
                held = {SOFTWARE, SETTINGS}
            texts = [keyword for keyword in self.texts if keyword not in held]
            lost += [f"the texts {', '.join(texts)}"] if texts else []
            lost += ["the code of its colours"] if any(name not in PNG_TEXTS for name, _ in metadata.chunks) else []
        if kind not in (".png", *JPEG):
            lost += ["comments"] if metadata.comments else []
        if kind not in (".png", *JPEG, *TIFF):
            lost += ["captions and keywords (IPTC)"] if metadata.iptc else []
        if lost:
            log.warning("%s: %s files have no place for %s", self.target, suffix, ", ".join(lost))


def is_ours(software: str) -> bool:
    """Whether a program's name is that of this one."""
    return software.strip().startswith(SETTINGS)


def encode(store: Pixels, path: Path, suffix: str, labels: Labels, quality: int) -> None:
    """Write the pixels to `path` as a file of the kind of `suffix`. Raises OSError, ValueError and libvips' Error."""
    labels.tell_losses(suffix)
    writer = WRITERS.get(suffix)
    if writer is not None:
        writer(store, path, labels, quality)
    else:
        _write_by_pillow(store, path, suffix, labels, quality)


def _with_profile(store: Pixels, labels: Labels):
    """The pixels as a libvips picture that carries its colour profile."""
    picture = store.picture().copy()
    if labels.metadata.icc is not None:
        picture.set_type(vips().GValue.blob_type, "icc-profile-data", labels.metadata.icc)
    return picture


def _write_png(store: Pixels, path: Path, labels: Labels, quality: int) -> None:
    _with_profile(store, labels).pngsave(os.fsencode(path), compression=PNG_COMPRESSION, filter=PNG_FILTER, keep="icc")
    with open(path, "rb") as stream:
        head, end = _png_head(stream)
    chunks = [*((name, data) for name, data in head if name != PNG_RESOLUTION), *_png_labels(labels, *store.shape[:2])]
    _replace_head(path, end, b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks))


def _png_head(stream: BinaryIO) -> tuple[list[tuple[bytes, bytes]], int]:
    """Chunks before the pixels, and where those start."""
    chunks: list[tuple[bytes, bytes]] = []
    for name, length in png_structure(stream):
        if name == b"IDAT":
            return chunks, stream.tell() - PNG_CHUNK_HEAD
        chunks.append((name, stream.read(length)))
    raise ValueError("a PNG file without pixels")


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_labels(labels: Labels, height: int, width: int) -> Iterator[tuple[bytes, bytes]]:
    """The chunks that say something of the picture: those it came with, then ours."""
    metadata = labels.metadata
    if metadata.resolution is not None:
        x, y = (round(side * 1000) for side in metadata.resolution)
        yield PNG_RESOLUTION, struct.pack(">IIB", x, y, METRE)
    exif = labels.exif(height, width)
    if exif is not None:
        yield b"eXIf", exif
    if metadata.xmp is not None:  # the settings have a text of their own
        yield b"iTXt", XMP_KEYWORD + b"\0" * 5 + metadata.xmp
    replaced = {word for word, text in ((SOFTWARE, labels.software), (SETTINGS, labels.settings)) if text is not None}
    for name, data in metadata.chunks:
        if name not in PNG_TEXTS or data.partition(b"\0")[0].decode("latin-1") not in replaced:
            yield name, data
    for comment in metadata.comments:
        yield _png_text(COMMENT, _comment_text(comment).strip("\0"))
    if metadata.iptc is not None:
        digits = _photoshop(metadata.iptc).hex()
        lines = "\n".join(digits[i:i + HEX_LINE] for i in range(0, len(digits), HEX_LINE))
        yield _png_text(IPTC_KEYWORDS[0].decode(), f"\niptc\n{len(digits) // 2:8d}\n{lines}\n")
    for keyword, text in ((SOFTWARE, labels.programs), (SETTINGS, labels.settings)):
        if text is not None:
            yield _png_text(keyword, text)


def _png_text(keyword: str, text: str) -> tuple[bytes, bytes]:
    try:
        return b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", keyword.encode("latin-1") + b"\0" * 5 + text.encode("utf-8", "replace")


def _comment_text(comment: bytes) -> str:
    """JPEG and GIF files do not say in which encoding a comment is. Other bytes than those of UTF-8 text hardly ever
    pass for it; they are read as Latin-1, which has a letter for each."""
    try:
        return comment.decode("utf-8")
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _photoshop(iptc: bytes) -> bytes:
    """A record of captions and keywords as a resource of Photoshop's, without a name."""
    return b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def _write_jpeg(store: Pixels, path: Path, labels: Labels, quality: int) -> None:
    _with_profile(store, labels).jpegsave(os.fsencode(path), Q=quality, keep="icc")
    with open(path, "rb") as stream:
        has_header = stream.read(JFIF_END)[2:4] == JFIF_MARKER
    header = JPEG_START + JFIF_MARKER + struct.pack(">H5sHBHHH", JFIF_END - 4, b"JFIF\0", JFIF_VERSION,
                                                    *_jfif_density(labels.metadata.resolution), 0)
    _replace_head(path, JFIF_END if has_header else len(JPEG_START),
                  header + b"".join(_jpeg_labels(labels, *store.shape[:2])))


def _jfif_density(resolution: tuple[float, float] | None) -> tuple[int, int, int]:
    """Unit (0 none, 1 inch, 2 centimetre) and whole pixels in it, in the unit that loses less."""
    choices = []
    for unit, millimetres in JFIF_MILLIMETRES.items() if resolution else ():
        exact = [side * millimetres for side in resolution]
        whole = [round(side) for side in exact]
        if all(0 < side < 2 ** 16 for side in whole):
            choices.append((max(abs(a - b) / a for a, b in zip(exact, whole, strict=True)), (unit, *whole)))
    return min(choices)[1] if choices else (0, 1, 1)


def _jpeg_labels(labels: Labels, height: int, width: int) -> Iterator[bytes]:
    """The segments that say something of the picture; what is too long for one is left out and told."""
    metadata, xmp = labels.metadata, labels.xmp()
    comments = [*metadata.comments, *([labels.texts[COMMENT].encode()] if COMMENT in labels.texts else ())]
    blocks: Iterable[tuple[str, int, bytes, bytes | None]] = (
        ("EXIF data", APP1, exif_block.PREFIX, labels.exif(height, width)), ("XMP", APP1, JPEG_XMP, xmp),
        ("IPTC data", APP13, JPEG_PHOTOSHOP, metadata.iptc and _photoshop(metadata.iptc)),
        *(("comment", COM, b"", comment) for comment in comments))
    for what, marker, prefix, block in blocks:
        if block is None:
            continue
        if len(prefix) + len(block) > JPEG_SEGMENT_BYTES:
            log.warning("%s: the %s is too long for a JPEG file and left out", labels.target, what)
            continue
        yield struct.pack(">BBH", 0xFF, marker, len(prefix) + len(block) + 2) + prefix + block


def _replace_head(path: Path, length: int, head: bytes) -> None:
    """Put a head of another length in place of the first bytes of a file, the rest moves; in pieces, in place."""
    with open(path, "r+b") as stream:
        size, shift = stream.seek(0, os.SEEK_END), len(head) - length
        places = range(length, size, SHIFTED_BYTES) if shift else ()
        for place in reversed(places) if shift > 0 else places:
            stream.seek(place)
            data = stream.read(min(SHIFTED_BYTES, size - place))
            stream.seek(place + shift)
            stream.write(data)
        stream.truncate(size + shift)
        stream.seek(0)
        stream.write(head)


def _write_webp(store: Pixels, path: Path, labels: Labels, quality: int) -> None:
    exif, xmp = labels.exif(*store.shape[:2]), labels.xmp()
    picture = _with_profile(store, labels)
    for name, block in (("exif-data", exif and exif_block.PREFIX + exif), ("xmp-data", xmp)):
        if block is not None:
            picture.set_type(vips().GValue.blob_type, name, block)
    picture.webpsave(os.fsencode(path), Q=quality, keep="exif:xmp:icc" if exif else "xmp:icc")
    if exif is not None:
        _replace_webp_exif(path, exif)


def _replace_webp_exif(path: Path, exif: bytes) -> None:
    """Put the block as it is in place of what libvips made of it; behind it comes XMP alone (RFC 9649, 2.7)."""
    with open(path, "r+b") as stream:
        size, place = stream.seek(0, os.SEEK_END), 12
        while True:
            stream.seek(place)
            name, length = struct.unpack("<4sI", stream.read(8))
            if name == b"EXIF":
                break
            place += 8 + length + length % 2
        stream.seek(place + 8 + length + length % 2)
        rest = stream.read(size)
        stream.seek(place)
        stream.write(struct.pack("<4sI", b"EXIF", len(exif)) + exif + b"\0" * (len(exif) % 2) + rest)
        stream.truncate()
        end = stream.tell()
        stream.seek(4)
        stream.write(struct.pack("<I", end - 8))


def _write_tiff(store: Pixels, path: Path, labels: Labels, quality: int) -> None:
    picture, xmp = _with_profile(store, labels), labels.xmp()
    if xmp is not None:
        picture.set_type(vips().GValue.blob_type, "xmp-data", xmp)
    picture.tiffsave(
        os.fsencode(path), compression="deflate", level=TIFF_COMPRESSION_LEVEL, predictor="horizontal", tile=False,
        tile_height=TIFF_ROWS, bigtiff=store.shape[0] * store.row_bytes > CLASSIC_TIFF_BYTES)
    more = {exif_block.IPTC_RECORD: labels.metadata.iptc} if labels.metadata.iptc else {}
    exif_block.into_tiff(path, labels.exif(*store.shape[:2]), more, labels.metadata.resolution)


def _write_by_pillow(store: Pixels, path: Path, suffix: str, labels: Labels, quality: int) -> None:
    """The kinds that libvips does not write, or not with all that they can say; the pixels are in memory at once."""
    register_plugins()
    pixels, buffer = store.array(), io.BytesIO()
    exif = labels.exif(*store.shape[:2])
    dots = [side * exif_block.MILLIMETRES[exif_block.INCH] for side in labels.metadata.resolution or (0, 0)]
    options = {"exif": exif, "icc_profile": labels.metadata.icc, "xmp": labels.xmp(), "quality": quality,
               "dpi": tuple(dots) if suffix == ".bmp" else None}
    if suffix in AVIF:
        options["exif"] = exif and exif_block.without_orientation(exif)  # Pillow would write the rest anew
        full = "4:4:4" if quality >= FULL_COLOR_QUALITY else "4:2:0"
        options["subsampling"] = "4:0:0" if pixels.shape[2] < 3 else full  # a gray profile fits gray alone
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, Image.registered_extensions()[suffix],
        **{name: value for name, value in options.items() if value is not None})
    path.write_bytes(buffer.getbuffer())  # Pillow itself overlooks what a full disk does not take


WRITERS: dict[str, Callable[[Pixels, Path, Labels, int], None]] = {
    ".png": _write_png, ".webp": _write_webp, **dict.fromkeys(JPEG, _write_jpeg), **dict.fromkeys(TIFF, _write_tiff),
}
