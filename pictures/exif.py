"""EXIF blocks: upright, with new fields, out of a TIFF file and into one.

A block is a small TIFF structure. It is changed by appending directories, so that nothing that stands in it moves: a
maker note holds offsets of its own, and text in other encodings than ASCII stays byte by byte.
"""
from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path

from .tiff import (
    ASCII,
    DAMAGED,
    EXIF_POINTER,
    GPS_POINTER,
    LONG,
    SHORT,
    UNDEFINED,
    Entry,
    Layout,
    directory_bytes,
    layout_of,
    raw_entries,
    read_entries,
)

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
