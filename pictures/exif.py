"""EXIF blocks, and the structure of TIFF files that they have (TIFF 6.0, section 2; BigTIFF has wider fields).

A block is changed by appending directories, so that nothing that stands in it moves: a maker note holds offsets of its
own, and text in other encodings than ASCII stays byte by byte.
"""
from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
POINTERS = (EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER)  # entries that lead to directories
ASCII, SHORT, LONG, UNDEFINED, LONG8 = 2, 3, 4, 7, 16
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
FORMATS = {SHORT: "H", LONG: "I", LONG8: "Q"}
RATIONALS = (5, 10)  # pairs of 4 bytes
MAX_DEPTH = 3
DAMAGED = (ValueError, struct.error, OSError, MemoryError, OverflowError)  # what reading a damaged structure raises

ORIENTATION, DESCRIPTION, SOFTWARE, USER_COMMENT = 0x0112, 0x010E, 0x0131, 0x9286
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
COLOR_SPACE, PIXEL_WIDTH, PIXEL_HEIGHT = 0xA001, 0xA002, 0xA003
# What a TIFF file's first directory says of the picture, beside how its pixels are stored: description, maker, model,
# resolution, software, date, artist, host, Windows' fields, copyright.
DESCRIPTIVE = (DESCRIPTION, 0x010F, 0x0110, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, SOFTWARE, 0x0132, 0x013B,
               0x013C, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, 0x8298, EXIF_POINTER, GPS_POINTER)
# Descriptions by which programs find their arrays again; they would be wrong for another size.
LAYOUT_DESCRIPTIONS = (b'{"shape"', b"ImageJ=")
EMPTY = b"II*\0\x08\0\0\0\0\0\0\0\0\0"
ASCII_COMMENT = b"ASCII\0\0\0"  # EXIF 2.3, 4.6.5: eight bytes name the encoding
CENTIMETRE = 3  # of RESOLUTION_UNIT
SRGB, UNCALIBRATED = 1, 0xFFFF  # of COLOR_SPACE


@dataclass(frozen=True)
class Layout:
    """Byte order ("<" or ">") and field widths of a TIFF structure."""

    order: str = "<"
    big: bool = False

    @property
    def pointer(self) -> str:
        """Format of an offset."""
        return self.order + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        """Format of a directory's length."""
        return self.order + ("Q" if self.big else "H")

    @property
    def width(self) -> int:
        """Bytes of an offset, and of the value within an entry."""
        return 8 if self.big else 4

    @property
    def header(self) -> int:
        """Where the offset of the first directory stands."""
        return 8 if self.big else 4


@dataclass(frozen=True)
class Entry:
    """A value in the byte order of its structure, or a directory of its own (then `data` is empty)."""

    kind: int
    data: bytes = b""
    directory: Mapping[int, Entry] = field(default_factory=dict)

    @classmethod
    def numbers(cls, layout: Layout, kind: int, *values: int) -> Entry:
        """Of SHORT, LONG or LONG8 values."""
        return cls(kind, struct.pack(f"{layout.order}{len(values)}{FORMATS[kind]}", *values))

    def turned(self) -> Entry:
        """The same in the other byte order."""
        size = 4 if self.kind in RATIONALS else SIZES[self.kind]
        values = (self.data[i:i + size][::-1] for i in range(0, len(self.data), size))
        return Entry(self.kind, b"".join(values), {tag: entry.turned() for tag, entry in self.directory.items()})


def layout_of(stream: BinaryIO) -> tuple[Layout, int]:
    """Layout of a TIFF structure and the offset of its first directory. Raises ValueError where it is none."""
    stream.seek(0)
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise ValueError("no TIFF header")
    magic = struct.unpack(order + "H", head[2:4])[0]
    if magic not in (42, 43):
        raise ValueError("no TIFF header")
    layout = Layout(order, magic == 43)
    return layout, struct.unpack_from(layout.pointer, head, layout.header)[0]


def raw_entries(stream: BinaryIO, offset: int, layout: Layout) -> tuple[dict[int, bytes], int]:
    """Entries of a directory as they stand there, and the offset of the next directory."""
    stream.seek(offset)
    count = struct.unpack(layout.count, stream.read(struct.calcsize(layout.count)))[0]
    if count > 0xFFFF:
        raise ValueError("a directory with too many entries")
    size = 4 + 2 * layout.width
    raw = [stream.read(size) for _ in range(count)]
    following = stream.read(layout.width).ljust(layout.width, b"\0")
    if any(len(entry) < size for entry in raw):
        raise ValueError("a directory that ends early")
    return ({struct.unpack(layout.order + "H", entry[:2])[0]: entry for entry in raw},
            struct.unpack(layout.pointer, following)[0])


def read_entries(stream: BinaryIO, offset: int, layout: Layout, tags: tuple[int, ...] | None = None,
                 depth: int = 0) -> dict[int, Entry]:
    """Entries of a directory with their values; what is damaged is left out."""
    entries = {}
    for tag, raw in raw_entries(stream, offset, layout)[0].items():
        if tags is not None and tag not in tags:
            continue
        try:
            entries[tag] = _entry(stream, tag, raw, layout, depth)
        except DAMAGED:
            continue
    return entries


def _entry(stream: BinaryIO, tag: int, raw: bytes, layout: Layout, depth: int) -> Entry:
    kind, count = struct.unpack(layout.order + "H" + layout.pointer[1], raw[2:4 + layout.width])
    if kind not in SIZES:
        raise ValueError(f"entry of the unknown type {kind}")
    value = raw[4 + layout.width:]
    target = struct.unpack(layout.pointer, value)[0]
    if tag in POINTERS and depth < MAX_DEPTH:
        directory = read_entries(stream, target, layout, depth=depth + 1)
        if not directory:
            raise ValueError("an empty directory")
        return Entry(LONG, b"", directory)
    length = SIZES[kind] * count
    if length > layout.width:
        stream.seek(target)
        value = stream.read(length)
    if len(value) < length:
        raise ValueError("a value that ends early")
    return Entry(kind, value[:length])


def directory_bytes(raw: Mapping[int, bytes], entries: Mapping[int, Entry], offset: int, layout: Layout,
                    following: int = 0) -> bytes:
    """A directory to stand at `offset`: entries taken over as they are and new ones, with the values they point to."""
    written = dict(raw)
    tags = sorted({*raw, *entries})
    values = offset + struct.calcsize(layout.count) + len(tags) * (4 + 2 * layout.width) + layout.width
    data = b""
    for tag, entry in sorted(entries.items()):
        data += b"\0" * (len(data) % 2)
        place = values + len(data)
        if entry.directory:
            data += directory_bytes({}, entry.directory, place, layout)
            kind, count, value = LONG8 if layout.big else LONG, 1, struct.pack(layout.pointer, place)
        else:
            kind, count, value = entry.kind, len(entry.data) // SIZES[entry.kind], entry.data
            if len(value) > layout.width:
                data += value
                value = struct.pack(layout.pointer, place)
        written[tag] = (struct.pack(layout.order + "HH" + layout.pointer[1], tag, kind, count)
                        + value.ljust(layout.width, b"\0"))
    return (struct.pack(layout.count, len(tags)) + b"".join(written[tag] for tag in tags)
            + struct.pack(layout.pointer, following) + data)


def bare(block: bytes) -> bytes:
    """A block without the prefix that JPEG and some writers put before it."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    return block


def upright(block: bytes) -> bytes:
    """The block with orientation 1 and without its thumbnail, which shows the picture before it was changed.

    Raises ValueError for a damaged block.
    """
    changed = bytearray(bare(block))
    try:
        layout, offset = layout_of(io.BytesIO(changed))
        count = struct.unpack_from(layout.count, changed, offset)[0]
        entries, size = offset + struct.calcsize(layout.count), 4 + 2 * layout.width
        for place in range(entries, entries + count * size, size):
            if struct.unpack_from(layout.order + "H", changed, place)[0] == ORIENTATION:
                struct.pack_into(layout.order + "HHIHH", changed, place, ORIENTATION, SHORT, 1, 1, 0)
        struct.pack_into(layout.pointer, changed, entries + count * size, 0)
    except DAMAGED as error:
        raise ValueError(f"the EXIF block is damaged ({error})") from error
    return bytes(changed)


def resolution(block: bytes | None) -> tuple[float, float] | None:
    """Pixels per millimetre (x, y) where the block says them."""
    if block is None:
        return None
    try:
        stream = io.BytesIO(block)
        layout, offset = layout_of(stream)
        entries = read_entries(stream, offset, layout, (X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT))
        x, y = (struct.unpack(layout.order + "II", entries[tag].data) for tag in (X_RESOLUTION, Y_RESOLUTION))
        unit = entries[RESOLUTION_UNIT].data if RESOLUTION_UNIT in entries else b""
        millimetres = 10.0 if unit and struct.unpack_from(layout.order + "H", unit)[0] == CENTIMETRE else 25.4
        return x[0] / x[1] / millimetres, y[0] / y[1] / millimetres
    except (*DAMAGED, KeyError, ZeroDivisionError):
        return None


def described(block: bytes | None, height: int, width: int, software: str | None, comment: str | None,
              srgb: bool) -> bytes:
    """The block (or a new one) with the software, a comment and, where it names one, the picture's new size."""
    block = block or EMPTY
    stream = io.BytesIO(block)
    layout, offset = layout_of(stream)
    raw, following = raw_entries(stream, offset, layout)
    main, sub = {}, {}
    if software is not None:
        main[SOFTWARE] = Entry(ASCII, software.encode() + b"\0")
    if comment is not None:
        sub[USER_COMMENT] = Entry(UNDEFINED, ASCII_COMMENT + comment.encode("ascii", "backslashreplace"))
    old = {}
    if EXIF_POINTER in raw:
        with suppress(*DAMAGED):  # then a new directory takes its place
            target = struct.unpack(layout.pointer, raw[EXIF_POINTER][4 + layout.width:])[0]
            old, _ = raw_entries(stream, target, layout)
    sub.update({tag: Entry.numbers(layout, LONG, size)
                for tag, size in ((PIXEL_WIDTH, width), (PIXEL_HEIGHT, height)) if tag in old})
    if COLOR_SPACE not in old:
        sub[COLOR_SPACE] = Entry.numbers(layout, SHORT, SRGB if srgb else UNCALIBRATED)
    block += b"\0" * (len(block) % 2)
    directory = directory_bytes(old, sub, len(block), layout)
    raw[EXIF_POINTER] = struct.pack(layout.order + "HHII", EXIF_POINTER, LONG, 1, len(block))
    block += directory + b"\0" * (len(directory) % 2)
    head = block[:layout.header] + struct.pack(layout.pointer, len(block)) + block[layout.header + layout.width:]
    return head + directory_bytes(raw, main, len(block), layout, following)


def of_tiff(path: Path, page: int = 0) -> bytes | None:
    """What a directory of a TIFF file says of its picture, as an upright EXIF block; None where it says nothing."""
    try:
        with open(path, "rb") as stream:
            layout, offset = layout_of(stream)
            for _ in range(page):
                _, offset = raw_entries(stream, offset, layout)
            entries = read_entries(stream, offset, layout, DESCRIPTIVE)
    except DAMAGED:
        return None
    if DESCRIPTION in entries and entries[DESCRIPTION].data.startswith(LAYOUT_DESCRIPTIONS):
        del entries[DESCRIPTION]
    if not set(entries) - {X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT}:
        return None
    head = (b"II*\0" if layout.order == "<" else b"MM\0*") + struct.pack(layout.order + "I", 8)
    return head + directory_bytes({}, entries, 8, Layout(layout.order))


def into_tiff(path: Path, block: bytes) -> None:
    """Add a block's fields to the first directory of a TIFF file, classic or BigTIFF."""
    source = io.BytesIO(block)
    block_layout, offset = layout_of(source)
    entries = read_entries(source, offset, block_layout, DESCRIPTIVE)
    with open(path, "r+b") as stream:
        layout, offset = layout_of(stream)
        raw, following = raw_entries(stream, offset, layout)
        if block_layout.order != layout.order:
            entries = {tag: entry.turned() for tag, entry in entries.items()}
        end = stream.seek(0, io.SEEK_END)
        end += stream.write(b"\0" * (end % 2))
        stream.write(directory_bytes(raw, entries, end, layout, following))
        stream.seek(layout.header)
        stream.write(struct.pack(layout.pointer, end))
