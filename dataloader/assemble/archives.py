"""Pictures inside archives that packages hold: EET (`.edj`, Enlightenment) and Qt's resources (`.rcc`)."""
from __future__ import annotations

import io
import struct
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import IO

from utils.errors import UserError

EET, QT = ".edj", ".rcc"

# EET: three big-endian words (magic number, entries, size of the names), then six for each entry: place, size, size
# when unpacked, place and length of its name, flags.
MAGIC = 0x1EE70F42
HEADER, ENTRY = struct.Struct(">3I"), struct.Struct(">6I")
FIRST_PICTURE = b"edje/images/0"
JPEG_START = b"\xff\xd8\xff"
LONGEST_HEADER = 64  # bytes before the JPEG file

# Qt: a header with the places of a tree, of data and of names; nodes of the tree are folders (number and first of what
# is in them) or files (place of their data, which begin with their length).
QT_HEADER, QT_NODE, QT_FOLDER, QT_FILE = (struct.Struct(f) for f in (">4s4I", ">IH", ">2I", ">4xI"))
QT_NAME, QT_LENGTH = struct.Struct(">HI"), struct.Struct(">I")
QT_MAGIC, QT_NODE_BYTES = b"qres", {1: 14, 2: 22, 3: 22}  # of a node, by version
COMPRESSED, FOLDER = 0b101, 0b10  # flags


def split_archive(path: str) -> tuple[str, str]:
    """The file in a package that a path means, and the path inside it where it is an archive ("" for all else)."""
    for parent in PurePosixPath(path).parents:
        if parent.suffix == QT:
            return str(parent), str(PurePosixPath(path).relative_to(parent))
    return path, ""


def contents(path: str, stream: IO[bytes], names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """What is asked for of a file, by the names of `split_archive`. Raises ValueError for a damaged archive."""
    suffix = PurePosixPath(path).suffix
    if suffix == QT:
        for name, content in qt_files(stream.read()):
            if name in names:
                yield name, io.BytesIO(content)
    else:
        yield "", io.BytesIO(first_picture(stream.read())) if suffix == EET else stream


def first_picture(archive: bytes) -> bytes:
    """The JPEG file of an archive's first picture. Raises ValueError for bytes that hold none."""
    if len(archive) < HEADER.size or HEADER.unpack_from(archive)[0] != MAGIC:
        raise UserError("no EET archive")
    count = HEADER.unpack_from(archive)[1]
    if len(archive) < HEADER.size + count * ENTRY.size:
        raise UserError("an EET archive that was cut off")
    for place, size, _, name, length, _ in ENTRY.iter_unpack(archive[HEADER.size:HEADER.size + count * ENTRY.size]):
        if archive[name:name + length].rstrip(b"\0") == FIRST_PICTURE:
            picture = archive[place:place + size]
            start = picture.find(JPEG_START, 0, LONGEST_HEADER)
            if start >= 0 and len(picture) == size:
                return picture[start:]
    raise UserError(f"an EET archive without a JPEG picture {FIRST_PICTURE.decode()}")


def qt_files(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of a Qt resource archive that is not compressed. Raises ValueError for others."""
    try:
        magic, version, tree, data, names = QT_HEADER.unpack_from(archive)
        if magic != QT_MAGIC or version not in QT_NODE_BYTES:
            raise UserError("no Qt resource archive")
        waiting = [(0, PurePosixPath())]
        while waiting:
            node, folder = waiting.pop()
            place = tree + node * QT_NODE_BYTES[version]
            name, flags = QT_NODE.unpack_from(archive, place)
            path = folder / _qt_name(archive, names + name) if node else folder
            place += QT_NODE.size
            if flags & FOLDER:
                count, first = QT_FOLDER.unpack_from(archive, place)
                waiting += [(child, path) for child in range(first, first + count)]
            elif not flags & COMPRESSED:
                start = data + QT_FILE.unpack_from(archive, place)[0]
                length = QT_LENGTH.unpack_from(archive, start)[0]
                start += QT_LENGTH.size
                yield str(path), archive[start:start + length]
    except struct.error as error:
        raise UserError(f"a Qt resource archive that was cut off ({error})") from error


def _qt_name(archive: bytes, place: int) -> str:
    length, _ = QT_NAME.unpack_from(archive, place)
    place += QT_NAME.size
    return archive[place:place + 2 * length].decode("utf-16-be")
