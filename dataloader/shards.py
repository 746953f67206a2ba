"""Which files a tar shard holds, and where: plain files of plain archives, uncompressed.

Python's `tarfile` is written for whole archives of people whom one trusts: of a few bytes it makes endless loops
(CVE-2025-8194), deep recursions and long searches (CVE-2024-6232). To index pictures takes no more than walking from
header to header, each behind the one before it.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512  # bytes; headers and data fill whole ones
HEADER = struct.Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")  # name, size, checksum, type, magic, prefix
CHECKSUM = slice(148, 156)
POSIX = b"ustar\0"  # the magic of archives whose names may have a prefix
FILES = (b"0", b"\0", b"7")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: their size says nothing
SPARSE = b"S"
LONG_NAME, EXTENDED = b"L", (b"x", b"X")  # blocks about the file behind them: its name; its attributes (pax)
ABOUT_FILES = (LONG_NAME, b"K", *EXTENDED, b"g")  # a long target of a link, and attributes of all files, too
EXTENDS, EXTENDS_FURTHER = 482, 504  # where a header of a sparse file, or a block after it, says that another follows
PAX_SPARSE = b"GNU.sparse."
MAX_METADATA = 2 ** 16  # bytes of a long name or of attributes
MAX_DIGITS = 20
BINARY, NEGATIVE = 0x80, 0xFF  # first byte of a number that is not written in octal digits


class ShardError(ValueError):
    """A tar file that is damaged, or made to do harm; in words."""


@dataclass(frozen=True)
class Member:
    """A file in an archive: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The plain files of an archive that lie within it, in order. Raises ShardError behind those before the damage."""
    end, offset = os.fstat(file.fileno()).st_size, 0
    name: bytes | None = None  # what blocks before a file's header say of it
    size: int | None = None
    sparse = False
    while offset < end:
        header = _read(file, offset, BLOCK)
        if not any(header):  # the end of the archive
            return
        own_name, own_size, kind = _parsed(header, offset)
        offset += BLOCK
        if kind == SPARSE:
            offset, sparse = _behind_map(file, header, offset), True
        if size is not None and kind not in ABOUT_FILES:
            own_size = size
        room = 0 if kind in WITHOUT_DATA else -(-own_size // BLOCK) * BLOCK
        if offset + own_size > end and room:
            raise ShardError(f"a file of {own_size} bytes at {offset}, behind the end")
        if kind == LONG_NAME:
            name = _metadata(file, offset, own_size).partition(b"\0")[0]
        elif kind in EXTENDED:
            records = _records(_metadata(file, offset, own_size))
            name, size = records.get(b"path", name), _decimal(records.get(b"size"))
            sparse = any(key.startswith(PAX_SPARSE) for key in records)
        elif kind not in ABOUT_FILES:
            if kind in FILES and not sparse:
                yield Member(os.fsdecode(own_name if name is None else name), offset, own_size)
            name, size, sparse = None, None, False
        offset += room


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ShardError(f"an end at {offset + len(data)}, too early")
    return data


def _parsed(header: bytes, offset: int) -> tuple[bytes, int, bytes]:
    """Name, size and type of what a header stands for."""
    name, size, checksum, kind, magic, prefix = HEADER.unpack(header)
    own_sum = sum(header) - sum(header[CHECKSUM]) + len(checksum) * ord(" ")
    if _number(checksum) != own_sum:
        raise ShardError(f"no header at {offset}")
    name, prefix = name.partition(b"\0")[0], prefix.partition(b"\0")[0]
    return (prefix + b"/" + name if prefix and magic == POSIX else name), _number(size), kind


def _number(field: bytes) -> int:
    """A number of a header, from 0 on."""
    if field[0] in (BINARY, NEGATIVE):
        number = int.from_bytes(field[1:], "big")
        digits = field[0] == BINARY
    else:
        text = field.partition(b"\0")[0].strip()
        digits = text.isdigit() or not text
        number = int(text or b"0", 8) if digits and not set(text) & set(b"89") else -1
    if not digits or number < 0:
        raise ShardError(f"a number {field!r}")
    return number


def _decimal(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise ShardError(f"a size {text[:MAX_DIGITS]!r}")
    return int(text)


def _metadata(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > MAX_METADATA:
        raise ShardError(f"{size} bytes about a file at {offset}")
    return _read(file, offset, size)


def _records(data: bytes) -> dict[bytes, bytes]:
    """Attributes of a file: lines `LENGTH KEY=VALUE`, whose length counts all of the line."""
    records, start = {}, 0
    while start < len(data):
        space = data.find(b" ", start, start + MAX_DIGITS)
        length = _decimal(data[start:space]) if space > start else None
        line = b"" if length is None else data[start:start + length]
        if length is None or len(line) != length or not line.endswith(b"\n") or start + length <= space:
            raise ShardError("attributes of a file that cannot be read")
        key, _, value = data[space + 1:start + length - 1].partition(b"=")
        records[key] = value
        start += length
    return records


def _behind_map(file: BinaryIO, header: bytes, offset: int) -> int:
    """Where the data of a sparse file begin: behind the blocks that say where its holes are."""
    more = header[EXTENDS]
    while more:
        more = _read(file, offset, BLOCK)[EXTENDS_FURTHER]
        offset += BLOCK
    return offset
