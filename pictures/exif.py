"""EXIF blocks, and the structure of TIFF files that they have (TIFF 6.0, section 2; BigTIFF has wider fields); XMP
packets (ISO 16684-1).

A block is changed by appending directories, so that nothing that stands in it moves: a maker note holds offsets of its
own, and text in other encodings than ASCII stays byte by byte.
"""
from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from xml.dom import minidom
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape, unescape

EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
POINTERS = (EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER)  # entries that lead to directories
ASCII, SHORT, LONG, UNDEFINED, LONG8 = 2, 3, 4, 7, 16
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
FORMATS = {SHORT: "H", LONG: "I", LONG8: "Q"}
RATIONALS = (5, 10)  # pairs of 4 bytes
MAX_DEPTH = 3
MAX_BLOCK = 2 ** 20  # bytes of one text or block of metadata, and of all texts together
MAX_PAGES = 10_000  # of a file: libraries need a time for the last one that grows with the square of their number
MAX_ENTRIES = 2 ** 20  # of all directories together
SHARED_BYTES = 4096  # of values that writers store once for several entries
MAX_PREFIXES = 4  # before a block; one is usual
PREFIX = b"Exif\0\0"
DAMAGED = (ValueError, struct.error, OSError, MemoryError, OverflowError)  # what reading a damaged structure raises

ORIENTATION, DESCRIPTION, SOFTWARE, USER_COMMENT = 0x0112, 0x010E, 0x0131, 0x9286
ARTIST, COPYRIGHT = 0x013B, 0x8298
THUMBNAIL, THUMBNAIL_BYTES = 0x0201, 0x0202  # of the second directory: where a JPEG file begins, and its length
IPTC_RECORD, PHOTOSHOP, XMP_PACKET = 0x83BB, 0x8649, 0x02BC  # of TIFF files
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
COLOR_SPACE, PIXEL_WIDTH, PIXEL_HEIGHT = 0xA001, 0xA002, 0xA003
IMAGE_WIDTH, IMAGE_HEIGHT = 0x0100, 0x0101  # the same of the first directory
# What a TIFF file's first directory says of the picture, beside how its pixels are stored: description, maker, model,
# resolution, software, date, artist, host, Windows' fields, copyright.
DESCRIPTIVE = (DESCRIPTION, 0x010F, 0x0110, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, SOFTWARE, 0x0132, 0x013B,
               0x013C, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, 0x8298, EXIF_POINTER, GPS_POINTER)
# Descriptions by which programs find their arrays again; they would be wrong for another size.
LAYOUT_DESCRIPTIONS = (b'{"shape"', b"ImageJ=")
EMPTY = b"II*\0\x08\0\0\0\0\0\0\0\0\0"
ASCII_COMMENT = b"ASCII\0\0\0"  # EXIF 2.3, 4.6.5: eight bytes name the encoding
NO_UNIT, INCH, CENTIMETRE = 1, 2, 3  # of RESOLUTION_UNIT
MILLIMETRES = {INCH: 25.4, CENTIMETRE: 10.0}
RESOLUTION = (X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT)
RATIONAL, DENOMINATOR = 5, 10_000
SRGB, UNCALIBRATED = 1, 0xFFFF  # of COLOR_SPACE

# What a packet says is in its file and no result holds: a second picture with the light that this one lacks (Adobe's
# and Google's, Apple's), a video behind it, the rest of a packet that is too long for one segment.
ANNOUNCEMENTS = {
    "its gain map (what makes it HDR)": re.compile(rb"ns\.adobe\.com/hdr-gain-map/|ns\.apple\.com/HDRGainMap/"),
    "its video": re.compile(rb":(?:MotionPhoto|MicroVideo)(?:>|\s*=\s*[\"'])\s*1"),
    "its extended XMP": re.compile(rb":HasExtendedXMP[>\s=]")}
# Namespaces of such announcements; the directory of Google's container is of no use without its pictures.
ANNOUNCING = ("http://ns.adobe.com/hdr-gain-map/1.0/", "http://ns.apple.com/HDRGainMap/1.0/",
              "http://ns.google.com/photos/1.0/container/", "http://ns.google.com/photos/1.0/container/item/",
              "http://ns.adobe.com/xmp/note/")
CAMERA, VIDEO = "http://ns.google.com/photos/1.0/camera/", ("MotionPhoto", "MicroVideo")  # which says other things too
# tiff:Orientation in both ways RDF writes a property
XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:>|\s*=\s*[\"'])\s*)([1-8])")
XMP_NAMESPACE = "urn:x-varsr:1.0"
END_OF_RDF = re.compile(rb"</(?:[\w.-]+:)?RDF\s*>")
# up to the next tag and no further, so that the time grows with a packet's length and not with its square
OUR_DESCRIPTION = re.compile(rb"<rdf:Description[^<>]*urn:x-varsr:1\.0[^<>]*>")
OUR_SETTINGS = re.compile(rb"<varsr:settings>([^<>]*)</varsr:settings>")
END_OF_DESCRIPTION = re.compile(rb"</rdf:Description[ \t\r\n]*>")
MAX_PARSED = 2 ** 17  # bytes of a packet that is read as a tree, which takes hundreds of times as much
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
EMPTY_PACKET = ('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
          f'<rdf:RDF xmlns:rdf="{RDF}"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>').encode()


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


class Harmful(ValueError):
    """A structure that a reader could read, at a cost far beyond its length."""


def raw_entries(stream: BinaryIO, offset: int, layout: Layout) -> tuple[dict[int, bytes], int]:
    """Entries of a directory as they stand there, and the offset of the next directory."""
    entries, following = _listed(stream, offset, layout)
    if following is None:
        raise ValueError("a directory that ends early")
    return _by_tag(entries, layout), following


def _by_tag(entries: list[bytes], layout: Layout) -> dict[int, bytes]:
    return {struct.unpack_from(layout.order + "H", entry)[0]: entry for entry in entries}


def _listed(stream: BinaryIO, offset: int, layout: Layout) -> tuple[list[bytes], int | None]:
    """All entries that are there, and the offset of the next directory; None of one that ends early."""
    stream.seek(offset)
    count = struct.unpack(layout.count, stream.read(struct.calcsize(layout.count)))[0]
    if count > MAX_ENTRIES:
        raise Harmful(f"{count} entries in a directory")
    size = 4 + 2 * layout.width
    data = stream.read(count * size)
    entries = [data[place:place + size] for place in range(0, len(data) - size + 1, size)]
    if len(entries) < count:
        return entries, None
    following = stream.read(layout.width).ljust(layout.width, b"\0")
    return entries, struct.unpack(layout.pointer, following)[0]


def directories(stream: BinaryIO) -> Iterator[tuple[dict[int, bytes], Layout]]:
    """The directories of a TIFF structure in their order, as they stand there.

    Raises ValueError for a damaged one, and Harmful for values that lie over each other, so that they are longer than
    the whole structure when they are read, and for too many directories or entries.
    """
    layout, offset = layout_of(stream)
    size = stream.seek(0, io.SEEK_END)
    seen: set[int] = set()
    room = MAX_ENTRIES
    while offset and offset not in seen:
        seen.add(offset)
        entries, following = _listed(stream, offset, layout)
        every = [entries, *_inner_directories(stream, entries, layout)]
        room -= sum(map(len, every))
        if len(seen) > MAX_PAGES or room < 0:
            raise Harmful(f"more than {MAX_PAGES} directories or {MAX_ENTRIES} entries")
        if sum(_value_bytes(each, layout, size) for each in every) > size + SHARED_BYTES:
            raise Harmful("values that lie over each other")
        if following is None:
            raise ValueError("a directory that ends early")
        yield _by_tag(entries, layout), layout
        offset = following


def _inner_directories(stream: BinaryIO, entries: list[bytes], layout: Layout, depth: int = 0
                       ) -> Iterator[list[bytes]]:
    """Those that entries lead to."""
    found = _by_tag(entries, layout)
    for tag in found.keys() & set(POINTERS) if depth < MAX_DEPTH else ():
        with suppress(*DAMAGED):
            target = struct.unpack(layout.pointer, found[tag][4 + layout.width:])[0]
            inner, _ = _listed(stream, target, layout)
            yield inner
            yield from _inner_directories(stream, inner, layout, depth + 1)


def _value_bytes(entries: list[bytes], layout: Layout, size: int) -> int:
    """How long the values are that lie outside their entries, within a structure of `size` bytes."""
    total = 0
    for entry in entries:
        kind, count = struct.unpack_from(layout.order + "H" + layout.pointer[1], entry, 2)
        target = struct.unpack_from(layout.pointer, entry, 4 + layout.width)[0]
        length = SIZES.get(kind, 0) * count
        if length > layout.width and target + length <= size:  # others are not read
            total += length
    return total


def number(raw: Mapping[int, bytes], tag: int, layout: Layout, otherwise: int = 0) -> int:
    """The first value of an entry of SHORT, LONG or LONG8 values that stand in it; else what is given."""
    entry = raw.get(tag, b"")
    kind = struct.unpack_from(layout.order + "H", entry, 2)[0] if entry else 0
    return struct.unpack_from(layout.order + FORMATS[kind], entry, 4 + layout.width)[0] \
        if kind in FORMATS and SIZES[kind] <= layout.width else otherwise


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
    if length > MAX_BLOCK:
        raise ValueError("a value that is too long")
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
    data = bytearray()
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
    start = 0
    while block.startswith(PREFIX, start):
        start += len(PREFIX)
    return block[start:]


def require_harmless_block(block: bytes) -> None:
    """Raise Harmful for a block that is made to cost those who read it (`directories`)."""
    if block.startswith(PREFIX * (MAX_PREFIXES + 1)):
        raise Harmful("it begins again and again")
    with suppress_damage():
        next(directories(io.BytesIO(bare(block))), None)


@contextmanager
def suppress_damage() -> Iterator[None]:
    """What is damaged, but not harmful, passes."""
    try:
        yield
    except Harmful:
        raise
    except DAMAGED:
        pass


def orientation(block: bytes | None) -> int | None:
    """How the picture lies, 1 to 8; None where the block does not say it or is damaged."""
    if block is None:
        return None
    try:
        stream = io.BytesIO(bare(block))
        layout, offset = layout_of(stream)
        found = number(raw_entries(stream, offset, layout)[0], ORIENTATION, layout)
    except DAMAGED:
        return None
    return found if found in range(1, 9) else None


def upright(block: bytes) -> bytes:
    """The block with orientation 1 and without its thumbnail, which shows the picture before it was changed.

    Raises ValueError for a damaged block.
    """
    changed = bytearray(bare(block))
    try:
        layout, offset = layout_of(io.BytesIO(changed))
        places = _places(changed, offset, layout)
        _put_short(changed, places, layout, ORIENTATION, 1)
        following = struct.unpack_from(layout.pointer, changed, places.stop)[0]
        struct.pack_into(layout.pointer, changed, places.stop, 0)
    except DAMAGED as error:
        raise ValueError(f"the EXIF block is damaged ({error})") from error
    end = _thumbnail_start(bytes(changed), layout, offset, following) if following else None
    return bytes(changed[:end])


def _thumbnail_start(block: bytes, layout: Layout, offset: int, following: int) -> int | None:
    """Where the thumbnail begins that the directory at `following` names; None unless it ends the block, as it does in
    nearly all. Elsewhere it stays, unused, for nothing may move."""
    stream = io.BytesIO(block)
    with suppress(*DAMAGED):
        raw, _ = raw_entries(stream, following, layout)
        start, length = (number(raw, tag, layout) for tag in (THUMBNAIL, THUMBNAIL_BYTES))
        used = max(_end(stream, place, layout) for place in (offset, following))
        if used <= start and not block[start + length:].strip(b"\0"):
            return start
    return None


def _end(stream: BinaryIO, offset: int, layout: Layout, depth: int = 0) -> int:
    """Where a directory ends, with its values and the directories that it leads to."""
    entries, _ = _listed(stream, offset, layout)
    end = stream.tell()
    for tag, entry in _by_tag(entries, layout).items():
        kind, count = struct.unpack_from(layout.order + "H" + layout.pointer[1], entry, 2)
        target = struct.unpack_from(layout.pointer, entry, 4 + layout.width)[0]
        length = SIZES.get(kind, max(SIZES.values())) * count
        if tag in POINTERS and depth < MAX_DEPTH:
            end = max(end, _end(stream, target, layout, depth + 1))
        elif length > layout.width:
            end = max(end, target + length)
    return end


def _places(block: bytearray, offset: int, layout: Layout) -> range:
    """Where the entries of a directory begin; behind the last one stands the offset of the next directory."""
    count = struct.unpack_from(layout.count, block, offset)[0]
    start, size = offset + struct.calcsize(layout.count), 4 + 2 * layout.width
    return range(start, start + count * size, size)


def _put_short(block: bytearray, places: range, layout: Layout, tag: int, value: int) -> None:
    """Let the entries of a tag say one number, in place."""
    for place in places:
        if struct.unpack_from(layout.order + "H", block, place)[0] == tag:
            said = Entry.numbers(layout, SHORT, value).data.ljust(layout.width, b"\0")
            head = struct.pack(layout.order + "HH" + layout.pointer[1], tag, SHORT, 1)
            struct.pack_into(f"{places.step}s", block, place, head + said)


def in_srgb(block: bytes) -> bytes:
    """The block, with sRGB for a colour space that it names; a damaged one as it is."""
    changed = bytearray(block)
    with suppress(*DAMAGED, KeyError):
        stream = io.BytesIO(block)
        layout, offset = layout_of(stream)
        raw, _ = raw_entries(stream, offset, layout)
        details = struct.unpack(layout.pointer, raw[EXIF_POINTER][4 + layout.width:])[0]
        _put_short(changed, _places(changed, details, layout), layout, COLOR_SPACE, SRGB)
    return bytes(changed)


def resolution(block: bytes | None) -> tuple[float, float] | None:
    """Pixels per millimetre (x, y) where the block says them."""
    if block is None:
        return None
    try:
        stream = io.BytesIO(block)
        layout, offset = layout_of(stream)
        return resolution_of(read_entries(stream, offset, layout, RESOLUTION), layout)
    except DAMAGED:
        return None


def resolution_of(entries: Mapping[int, Entry], layout: Layout) -> tuple[float, float] | None:
    """The same, of a directory's entries. Without a unit they are inches (TIFF 6.0, page 38)."""
    try:
        x, y = (struct.unpack(layout.order + "II", entries[tag].data) for tag in (X_RESOLUTION, Y_RESOLUTION))
        unit = struct.unpack_from(layout.order + "H", entries[RESOLUTION_UNIT].data)[0] \
            if RESOLUTION_UNIT in entries else INCH
        found = x[0] / x[1] / MILLIMETRES[unit], y[0] / y[1] / MILLIMETRES[unit]
    except (*DAMAGED, KeyError, ZeroDivisionError):
        return None
    return found if min(found) > 0 else None


def resolution_entries(found: tuple[float, float] | None, layout: Layout) -> dict[int, Entry]:
    """Entries that say pixels per millimetre (x, y), in inches; of None that nothing is known."""
    unit, values = (INCH, [side * MILLIMETRES[INCH] for side in found]) if found else (NO_UNIT, [1.0, 1.0])
    numbers = [struct.pack(layout.order + "II", round(value * DENOMINATOR), DENOMINATOR) for value in values]
    return {X_RESOLUTION: Entry(RATIONAL, numbers[0]), Y_RESOLUTION: Entry(RATIONAL, numbers[1]),
            RESOLUTION_UNIT: Entry.numbers(layout, SHORT, unit)}


def text_of(block: bytes | None, tag: int) -> str | None:
    """A field of the first directory or the Exif directory as text; None where there is none or nothing in it."""
    if block is None:
        return None
    try:
        stream = io.BytesIO(block)
        layout, offset = layout_of(stream)
        entries = read_entries(stream, offset, layout, (tag, EXIF_POINTER))
    except DAMAGED:
        return None
    details = entries[EXIF_POINTER].directory if EXIF_POINTER in entries else {}
    data = (entries.get(tag) or details.get(tag) or Entry(ASCII)).data
    if tag == USER_COMMENT:
        data = data[len(ASCII_COMMENT):]
    return data.decode("utf-8", "replace").strip("\0 ") or None


@dataclass(frozen=True)
class Said:
    """What a block is to say of a result. comment: only where the block has none of somebody else (`is_ours` tells).
    resolution: pixels per millimetre, and texts by tag: where the block says nothing of these."""

    height: int
    width: int
    srgb: bool
    software: str | None = None
    comment: str | None = None
    resolution: tuple[float, float] | None = None
    texts: Mapping[int, str] = field(default_factory=dict)


def described(block: bytes | None, said: Said) -> bytes:
    """The block (or a new one) with what is to be said and, where it names one, the picture's new size."""
    block = block or EMPTY
    stream = io.BytesIO(block)
    layout, offset = layout_of(stream)
    raw, following = raw_entries(stream, offset, layout)
    main = {tag: Entry(ASCII, text.encode() + b"\0") for tag, text in said.texts.items() if tag not in raw}
    main |= _sizes(raw, IMAGE_WIDTH, IMAGE_HEIGHT, said, layout)
    sub = {}
    if said.software is not None:
        main[SOFTWARE] = Entry(ASCII, said.software.encode() + b"\0")
    if said.comment is not None:
        sub[USER_COMMENT] = Entry(UNDEFINED, ASCII_COMMENT + said.comment.encode("ascii", "backslashreplace"))
    if said.resolution is not None and X_RESOLUTION not in raw:
        main |= resolution_entries(said.resolution, layout)
    old = {}
    if EXIF_POINTER in raw:
        with suppress(*DAMAGED):  # then a new directory takes its place
            target = struct.unpack(layout.pointer, raw[EXIF_POINTER][4 + layout.width:])[0]
            old, _ = raw_entries(stream, target, layout)
    sub |= _sizes(old, PIXEL_WIDTH, PIXEL_HEIGHT, said, layout)
    if COLOR_SPACE not in old:
        sub[COLOR_SPACE] = Entry.numbers(layout, SHORT, SRGB if said.srgb else UNCALIBRATED)
    block += b"\0" * (len(block) % 2)
    directory = directory_bytes(old, sub, len(block), layout)
    raw[EXIF_POINTER] = struct.pack(layout.order + "HHII", EXIF_POINTER, LONG, 1, len(block))
    block += directory
    return _with_directory(block, layout, raw, main, following)


def _sizes(raw: Mapping[int, bytes], width: int, height: int, said: Said, layout: Layout) -> dict[int, Entry]:
    """The sides that a directory names by these tags, as they are now."""
    return {tag: Entry.numbers(layout, LONG, size) for tag, size in ((width, said.width), (height, said.height))
            if tag in raw}


def _with_directory(block: bytes, layout: Layout, raw: Mapping[int, bytes], entries: Mapping[int, Entry],
                    following: int) -> bytes:
    """The block with a new first directory at its end, in place of the old one, which stays where it is, unused."""
    block += b"\0" * (len(block) % 2)
    head = block[:layout.header] + struct.pack(layout.pointer, len(block)) + block[layout.header + layout.width:]
    return head + directory_bytes(raw, entries, len(block), layout, following)


def without_orientation(block: bytes) -> bytes:
    """The block with a first directory that does not say how the picture lies."""
    stream = io.BytesIO(block)
    layout, offset = layout_of(stream)
    raw, following = raw_entries(stream, offset, layout)
    if ORIENTATION not in raw:
        return block
    del raw[ORIENTATION]
    return _with_directory(block, layout, raw, {}, following)


def tiff_entries(path: Path, page: int, tags: tuple[int, ...]) -> tuple[dict[int, Entry], Layout]:
    """Entries of a directory of a TIFF file. Raises what reading a damaged structure raises (DAMAGED)."""
    with open(path, "rb") as stream:
        layout, offset = layout_of(stream)
        for _ in range(page):
            _, offset = raw_entries(stream, offset, layout)
        return read_entries(stream, offset, layout, tags), layout


def of_tiff(path: Path, page: int = 0) -> bytes | None:
    """What a directory of a TIFF file says of its picture, as an upright EXIF block; None where it says nothing.

    Raises ValueError where that is too long.
    """
    try:
        entries, layout = tiff_entries(path, page, DESCRIPTIVE)
    except DAMAGED:
        return None
    if DESCRIPTION in entries and entries[DESCRIPTION].data.startswith(LAYOUT_DESCRIPTIONS):
        del entries[DESCRIPTION]
    if not set(entries) - {X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT}:
        return None
    head = (b"II*\0" if layout.order == "<" else b"MM\0*") + struct.pack(layout.order + "I", 8)
    block = head + directory_bytes({}, entries, 8, Layout(layout.order))
    if len(block) > MAX_BLOCK:
        raise ValueError(f"{len(block)} bytes are too many")
    return block


def into_tiff(path: Path, block: bytes | None, more: Mapping[int, bytes], resolution: tuple[float, float] | None
              ) -> None:
    """Add a block's fields, more fields of bytes by tag, and the resolution to the first directory of a TIFF file,
    classic or BigTIFF."""
    with open(path, "r+b") as stream:
        layout, offset = layout_of(stream)
        raw, following = raw_entries(stream, offset, layout)
        entries = _entries_for(block, layout)
        if X_RESOLUTION not in entries or resolution is None:
            entries |= resolution_entries(resolution, layout)
        entries |= {tag: Entry(UNDEFINED, data) for tag, data in more.items()}
        end = stream.seek(0, io.SEEK_END)
        end += stream.write(b"\0" * (end % 2))
        stream.write(directory_bytes(raw, entries, end, layout, following))
        stream.seek(layout.header)
        stream.write(struct.pack(layout.pointer, end))


def _entries_for(block: bytes | None, layout: Layout) -> dict[int, Entry]:
    """A block's descriptive fields in a file's byte order."""
    if block is None:
        return {}
    source = io.BytesIO(block)
    block_layout, offset = layout_of(source)
    entries = read_entries(source, offset, block_layout, DESCRIPTIVE)
    return entries if block_layout.order == layout.order else {tag: entry.turned() for tag, entry in entries.items()}


def announced(xmp: bytes) -> list[str]:
    """What a packet says is in its file and no result holds, in words."""
    return [what for what, name in ANNOUNCEMENTS.items() if name.search(xmp)]


def without_announcements(xmp: bytes) -> bytes | None:
    """A packet without all that announces such things; None where it cannot be read, is too long or defines
    entities."""
    if len(xmp) > MAX_PARSED or b"<!DOCTYPE" in xmp:
        return None
    try:
        document = minidom.parseString(xmp)
        _clear(document.documentElement)
        return document.toxml(encoding="utf-8")
    except (ExpatError, ValueError, LookupError, RecursionError):
        return None


def _clear(element: minidom.Element) -> None:
    for name, value in list(element.attributes.items() if element.attributes else ()):
        if _announces(element.getAttributeNode(name)) or value in ANNOUNCING:
            element.removeAttribute(name)
    for child in list(element.childNodes):
        if child.nodeType != child.ELEMENT_NODE:
            continue
        if _announces(child):
            element.removeChild(child)
        else:
            _clear(child)


def _announces(node: minidom.Node) -> bool:
    return node.namespaceURI in ANNOUNCING or (node.namespaceURI == CAMERA and node.localName.startswith(VIDEO))


def with_settings(xmp: bytes | None, settings: str) -> bytes:
    """A packet, or a new one, that says beside all else how the picture was made, in place of what an earlier run said.

    Raises ValueError for a packet that has no place for it.
    """
    packet = _without_ours(xmp) if xmp else EMPTY_PACKET
    ends = list(END_OF_RDF.finditer(packet))
    if not ends:
        raise ValueError("no end of an RDF element")
    ours = (f'<rdf:Description xmlns:rdf="{RDF}" rdf:about="" xmlns:varsr="{XMP_NAMESPACE}"><varsr:settings>'
            f"{escape(settings)}</varsr:settings></rdf:Description>").encode()
    return packet[:ends[-1].start()] + ours + packet[ends[-1].start():]


def settings_of(xmp: bytes | None) -> str | None:
    """What `with_settings` put into a packet; None where it did not."""
    found = OUR_SETTINGS.search(xmp or b"")
    return unescape(found[1].decode("utf-8", "replace")) if found else None


def _without_ours(xmp: bytes) -> bytes:
    """A packet without what an earlier run said."""
    kept, start = [], 0
    while (ours := OUR_DESCRIPTION.search(xmp, start)) and (end := END_OF_DESCRIPTION.search(xmp, ours.end())):
        kept.append(xmp[start:ours.start()])
        start = end.end()
    return b"".join((*kept, xmp[start:]))
