"""The structure of TIFF files and EXIF blocks: a header and directories of entries (TIFF 6.0, section 2).

BigTIFF has the same with wider fields.
"""
from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
POINTERS = (EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER)  # entries that lead to directories
ASCII, SHORT, LONG, UNDEFINED, LONG8 = 2, 3, 4, 7, 16
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
FORMATS = {SHORT: "H", LONG: "I", LONG8: "Q"}
RATIONALS = (5, 10)  # pairs of 4 bytes
MAX_DEPTH = 3
DAMAGED = (ValueError, struct.error, OSError, MemoryError, OverflowError)  # what reading a damaged structure raises


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
