"""Pictures inside EET archives (`.edj`, themes and backgrounds of the Enlightenment desktop).

An archive starts with three big-endian 32-bit words (magic number, entries, size of the names), then six for each
entry: place, size, size when unpacked, place and length of its name, flags. Photographs lie in it as whole JPEG files,
maybe behind a short header.
"""
from __future__ import annotations

import struct

MAGIC = 0x1EE70F42
HEADER, ENTRY = struct.Struct(">3I"), struct.Struct(">6I")
FIRST_PICTURE = b"edje/images/0"
JPEG_START = b"\xff\xd8\xff"
LONGEST_HEADER = 64  # bytes before the JPEG file


def first_picture(archive: bytes) -> bytes:
    """The JPEG file of an archive's first picture. Raises ValueError for bytes that hold none."""
    if len(archive) < HEADER.size or HEADER.unpack_from(archive)[0] != MAGIC:
        raise ValueError("no EET archive")
    count = HEADER.unpack_from(archive)[1]
    if len(archive) < HEADER.size + count * ENTRY.size:
        raise ValueError("an EET archive that was cut off")
    for place, size, _, name, length, _ in ENTRY.iter_unpack(archive[HEADER.size:HEADER.size + count * ENTRY.size]):
        if archive[name:name + length].rstrip(b"\0") == FIRST_PICTURE:
            picture = archive[place:place + size]
            start = picture.find(JPEG_START, 0, LONGEST_HEADER)
            if start >= 0 and len(picture) == size:
                return picture[start:]
    raise ValueError(f"an EET archive without a JPEG picture {FIRST_PICTURE.decode()}")
