"""Damage to whole files, blind and by their structure: what a checksum or length guards is made right again, so that
many of the inputs pass the first gate."""
from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from tests.conftest import png_chunk
from tests.security.fuzz_process import Input
from tests.security.fuzz_seeds import seeds

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]  # of data, with other files of the kind

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 32, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 20_000,
           65_500, 2 ** 24 - 1, 2 ** 28, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 40, 2 ** 63 - 1, 2 ** 63, 2 ** 64 - 1)
BLIND_SHARE = 0.25  # of the inputs are damaged without a look at their structure
MORE_SHARE = 0.4  # are damaged once more
LARGEST = 2 ** 22  # bytes of an input
# What the structures raise of a file that is damaged already
UNSTRUCTURED = (ValueError, LookupError, struct.error, zlib.error, zipfile.BadZipFile, OSError, EOFError, RuntimeError,
                StopIteration, OverflowError)
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_NAMES = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"eXIf", b"pHYs",
             b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT")
TIFF_START = re.compile(rb"II\*\0|MM\0\*|II\+\0\x08\0\0\0|MM\0\+\0\x08\0\0")
TIFF_TAGS = (254, 256, 257, 258, 259, 262, 266, 269, 270, 273, 274, 277, 278, 279, 282, 283, 284, 296, 305, 317, 320,
             322, 323, 324, 325, 330, 332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33432, 33723, 34377,
             34665, 34675, 34853, 37500, 37510, 40961, 40965)
TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 34887, 34925, 50000, 50001, 50002)
JSON_VALUES = (None, True, False, 0, 1, -1, 2, 3, 4, 7, 16, 64, 2000, 10 ** 6, 2 ** 31, 2 ** 63, 10 ** 30, 0.5, -0.5,
               1e308, float("inf"), float("nan"), "", "text", "1", [], [1], [1, 2, 4], [4, 2, 1], [-1, 1], [1, "a"],
               [[1], [2]], {}, {"widths": [16, 32]}, {"a": 1}, list(range(1, 400)))
TAR_BLOCK = 512
TAR_FIELDS = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1),
              (157, 100), (257, 6), (263, 2), (345, 155), (386, 97), (483, 12))
TAR_NUMBERS = (0, 1, 511, 512, 513, 2 ** 33 - 1, 10 ** 12, -1, -512, -1024, -2 ** 40)
TAR_TYPES = b"01234567LKNSxgXV\0A"
PICKLE_PARTS = (b"N", b"]", b"}", b")", b"(", b"t", b"a", b"s", b"u", b"e", b"0", b"2", b"R", b"b", b"\x81", b"\x85",
                b"\x86", b"\x87", b"Q", b"q\0", b"h\0", b"h\1", b"r\xff\xff\xff\xff", b"K\x7f", b"M\xff\xff",
                b"J\xff\xff\xff\x7f", b"J\0\0\0\x80", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
                b"G" + struct.pack(">d", 1e308), b"X\x04\0\0\0text", b"X\xff\xff\xff\x7f", b"\x8c\xff",
                b"ctorch\nFloatStorage\n",
                b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n",
                b"cnumpy\ndtype\n", b"cos\nsystem\n", b"ctorch\nSize\n", b"cpathlib\nPurePosixPath\n",
                b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\ndtype\nX\x0a\0\0\0V100000000\x85R",
                b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._tensor\n_rebuild_from_type_v2\n")


# ---- any bytes

def flip(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A few bits, or many."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64, min(len(data) // 20 + 1, 4096)))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """The end is missing."""
    return data[:_place(data, random)]


def remove(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A piece in the middle is missing."""
    start = _place(data, random)
    return data[:start] + data[start + random.choice((1, 2, 4, 16, 256)):]


def insert(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Bytes that do not belong there: noise, zeros, many of one."""
    length = random.choice((1, 2, 4, 16, 256, 5000))
    piece = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
    start = _place(data, random)
    return data[:start] + piece + data[start:]


def repeat(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A piece stands there several times."""
    start = _place(data, random)
    piece = data[start:start + random.choice((1, 4, 12, 64, 512))]
    return data[:start] + piece * random.choice((2, 2, 3, 50)) + data[start + len(piece):]


def splice(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A piece of another file of the kind, in place of ours or between."""
    other = random.choice(others)
    start, source = _place(data, random), _place(other, random)
    length = random.choice((4, 16, 64, 1024, len(other)))
    kept = start + random.choice((0, length))
    return data[:start] + other[source:source + length] + data[kept:]


def number(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A number at the edges of what a field holds."""
    changed = bytearray(data)
    width = random.choice((1, 2, 4, 4, 8))
    value = random.choice(NUMBERS) % 256 ** width
    start = max(min(_place(data, random), len(data) - width), 0)
    changed[start:start + width] = value.to_bytes(width, random.choice(("big", "little")))
    return bytes(changed)


def _place(data: bytes, random: Random) -> int:
    """Anywhere, half of the time near the start, where the headers are."""
    return random.randrange(min(len(data), random.choice((64, 600, len(data), len(data)))) or 1)


BLIND: tuple[Mutation, ...] = (flip, flip, cut, remove, insert, repeat, splice, number, number, number)


def blind(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Any of these."""
    return random.choice(BLIND)(data, random, others) if data else data


# ---- lists of chunks: PNG, JPEG, RIFF

Chunks = list[tuple[bytes, bytes]]


def _edited(chunks: Chunks, random: Random, other: Chunks, names: Sequence[bytes]) -> Chunks:
    """One chunk is damaged, dropped, doubled, moved, renamed, or taken from another file."""
    chunks = list(chunks)
    if not chunks:
        return other
    at, action = random.randrange(len(chunks)), random.randrange(9)
    name, data = chunks[at]
    if action < 3:
        chunks[at] = name, blind(data, random, [each for _, each in other] or [data])
    elif action == 3:
        del chunks[at]
    elif action == 4:
        chunks[at:at] = [chunks[at]] * random.choice((1, 1, 2, 40))
    elif action == 5:
        chunks.insert(random.randrange(len(chunks)), chunks.pop(at))
    elif action == 6:
        chunks[at] = random.choice(names), data
    elif other:
        chunks[at:at + random.randrange(2)] = [random.choice(other)]
    return chunks


def png_chunks(data: bytes) -> Chunks:
    """Names and data."""
    chunks, place = [], len(PNG_START)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place:place + 4], "big")
        chunks.append((data[place + 4:place + 8], data[place + 8:place + 8 + length]))
        place += 12 + length
    return chunks


def png(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Chunks with right checksums; also what is packed in them."""
    chunks = png_chunks(data)
    packed = [i for i, (name, _) in enumerate(chunks) if name in (b"IDAT", b"iCCP", b"zTXt", b"fdAT")]
    if packed and random.random() < 0.2:
        at = random.choice(packed)
        name, inner = chunks[at]
        head = inner.find(b"\0") + 2 if name in (b"iCCP", b"zTXt") else 4 if name == b"fdAT" else 0
        chunks[at] = name, inner[:head] + _repacked(inner[head:], random)
    elif chunks and random.random() < 0.2:
        chunks[0] = b"IHDR", _ihdr(chunks[0][1], random)
    else:
        chunks = _edited(chunks, random, png_chunks(random.choice(others)), PNG_NAMES)
    chunks = [(name, _exif_edited(inner, random) if name == b"eXIf" else inner) for name, inner in chunks]
    return PNG_START + b"".join(png_chunk(name, inner) for name, inner in chunks)


def _repacked(packed: bytes, random: Random) -> bytes:
    """The same with damage within a deflate stream."""
    try:
        return zlib.compress(blind(zlib.decompress(packed), random, [packed]))
    except zlib.error:
        return packed


def _ihdr(data: bytes, random: Random) -> bytes:
    sides = [random.choice((0, 1, 2, 31, 47, 48, 64, 4000, 2 ** 16, 2 ** 31 - 1)) for _ in range(2)]
    old = (data + bytes(13))[:13]
    kept = random.randrange(4)
    return (old[:4] if kept & 1 else struct.pack(">I", sides[0])) + (old[4:8] if kept & 2 else struct.pack(
        ">I", sides[1])) + bytes((random.choice((1, 2, 4, 8, 16, old[8], 0)), random.choice((0, 2, 3, 4, 6, old[9], 5)),
                                  0, 0, random.choice((0, 1, old[12]))))


def _exif_edited(block: bytes, random: Random) -> bytes:
    return tiff(block, random, [block]) if random.random() < 0.5 else block


def jpeg(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Segments with right lengths, EXIF directories, or the tables and the frame's header."""
    if random.random() < 0.3 and TIFF_START.search(data):
        return tiff(data, random, others)
    segments, rest = _segments(data)
    names = [bytes((marker,)) for marker in (0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)]
    segments = _edited(segments, random, _segments(random.choice(others))[0], names)
    return b"\xff\xd8" + b"".join(b"\xff" + name + struct.pack(">H", (len(inner) + 2) % 65536) + inner
                                  for name, inner in segments) + rest


def _segments(data: bytes) -> tuple[Chunks, bytes]:
    """Up to the start of the scan; the rest."""
    segments, place = [], 2
    while data[place:place + 1] == b"\xff" and data[place + 1:place + 2] not in (b"\xda", b"\xd9", b""):
        length = int.from_bytes(data[place + 2:place + 4], "big")
        segments.append((data[place + 1:place + 2], data[place + 4:place + 2 + length]))
        place += 2 + max(length, 2)
    return segments, data[place:]


def riff(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Chunks of a WebP file."""
    names = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP ", b"ICCP")
    chunks = _edited(_riff_chunks(data), random, _riff_chunks(random.choice(others)), names)
    chunks = [(name, _exif_edited(inner, random) if name == b"EXIF" else inner) for name, inner in chunks]
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(inner)) + inner + b"\0" * (len(inner) % 2)
                              for name, inner in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff_chunks(data: bytes) -> Chunks:
    chunks, place = [], 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4:place + 8], "little")
        chunks.append((data[place:place + 4], data[place + 8:place + 8 + length]))
        place += 8 + length + length % 2
    return chunks


# ---- boxes: AVIF, HEIC, JPEG XL in its container

CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iinf": 6, b"iref": 4, b"moov": 0, b"trak": 0, b"mdia": 0,
              b"minf": 0, b"stbl": 0, b"dinf": 0}  # and the bytes before their boxes


def _boxes(data: bytes, start: int, end: int) -> list[tuple[int, int, bytes]]:
    """Start, end and name of all boxes, those within others too."""
    found = []
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        stop = min(start + size if size >= 8 else end, end)
        found.append((start, stop, name))
        if name in CONTAINERS:
            found += _boxes(data, start + 8 + CONTAINERS[name], stop)
        start = stop
    return found


def boxes(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A box of another size, name or content; the sizes around it stay, as the offsets within the file do."""
    found = _boxes(data, 0, len(data))
    if not found:
        return blind(data, random, others)
    start, end, name = random.choice(found)
    changed = bytearray(data)
    action = random.randrange(6)
    if action == 0:
        struct.pack_into(">I", changed, start, random.choice((0, 1, 7, 8, 9, end - start + 1, 2 ** 31, 2 ** 32 - 1)))
    elif action == 1:
        changed[start + 4:start + 8] = random.choice(found)[2]
    elif action == 2 and name != b"mdat":  # the content of another box of the name, as much as there is room for
        other = random.choice(others)
        pieces = [other[a + 8:b] for a, b, word in _boxes(other, 0, len(other)) if word == name]
        room = end - start - 8
        changed[start + 8:end] = (random.choice(pieces) if pieces else b"").ljust(room, b"\0")[:room]
    else:
        inner = bytes(changed[start + 8:end])
        damage = random.choice((flip, number, number))
        changed[start + 8:end] = damage(inner, random, others) if inner else b""
    return bytes(changed)


# ---- directories of TIFF files and EXIF blocks, in place

def tiff(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """One or several entries, counts or links of directories, wherever they lie in the file."""
    starts = [match.start() for match in TIFF_START.finditer(data)]
    if not starts:
        return blind(data, random, others)
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        try:
            _edit_directory(changed, random.choice(starts), random)
        except UNSTRUCTURED:
            continue
    return bytes(changed)


def _edit_directory(data: bytearray, base: int, random: Random) -> None:
    order = "<" if data[base:base + 2] == b"II" else ">"
    big = data[base + 2 if order == "<" else base + 3] == 43
    pointer, count_format, size, width = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    offset = struct.unpack_from(order + pointer, data, base + (8 if big else 4))[0] + base
    places = [offset]  # of the first directories, and of those that EXIF's entries lead to
    for place in places:
        if len(places) > 6 or place + 8 > len(data):
            continue
        count = struct.unpack_from(order + count_format, data, place)[0]
        entries = place + struct.calcsize(count_format)
        for at in range(entries, min(entries + count * size, len(data) - size), size):
            if struct.unpack_from(order + "H", data, at)[0] in (34665, 34853, 330, 40965):
                places.append(base + struct.unpack_from(order + pointer, data, at + size - width)[0])
    place = random.choice(places)
    count = struct.unpack_from(order + count_format, data, place)[0]
    entries = place + struct.calcsize(count_format)
    action = random.randrange(10)
    if action == 0:
        struct.pack_into(order + count_format, data, place,
                         random.choice((0, 1, count + 1, 255, 4096, 65535)))
        return
    if action == 1:  # the next directory: this one, itself, anywhere
        struct.pack_into(order + pointer, data, entries + count * size,
                         random.choice((offset - base, place - base, 8, random.randrange(len(data)))))
        return
    at = entries + random.randrange(count) * size
    tag = struct.unpack_from(order + "H", data, at)[0]
    value_at = at + size - width
    short = order == ">" and struct.unpack_from(order + "H", data, at + 2)[0] == 3
    value = random.choice((*NUMBERS[:24], random.randrange(len(data)), *(TIFF_COMPRESSIONS if tag == 259 else ())))
    if action < 6:
        struct.pack_into(order + pointer, data, value_at, (value << 16 if short else value) % 256 ** width)
    elif action == 6:
        struct.pack_into(order + "H", data, at + 2, random.choice((*range(19), 255, 65535)))
    elif action == 7:
        struct.pack_into(order + pointer, data, at + 4, value % 256 ** width)
    elif action == 8:
        struct.pack_into(order + "H", data, at, random.choice(TIFF_TAGS))
    else:  # an entry of another place
        source = entries + random.randrange(count) * size
        data[at:at + size] = data[source:source + size]


# ---- weights, configurations, shards, lists

def archive(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A `.pth` file in the zip format with a damaged, missing, doubled or renamed entry; of the older format, its
    pickles."""
    if not data.startswith(b"PK"):
        return pickled(data, random, others)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = [(name, file.read(name)) for name in file.namelist()]
    at = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    action = random.randrange(8)
    if action > 3:
        entries[at] = entries[at][0], pickled(entries[at][1], random, [entries[at][1]])
    else:
        at = random.randrange(len(entries))
        name, inner = entries[at]
        entries[at:at + 1] = [[(name, blind(inner, random, [inner]))], [], [(name, inner)] * 2,
                              [(random.choice(entries)[0], inner)]][action]
    buffer = io.BytesIO()
    packing = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", packing) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubled names
        for name, inner in entries:
            file.writestr(zipfile.ZipInfo(name), inner, packing)  # of no date: the same every day
    return buffer.getvalue()


def pickled(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Opcodes between or in place of others; or blind."""
    if not data or random.random() < 0.3:
        return blind(data, random, others)
    start = random.randrange(min(len(data), random.choice((100, 1000, len(data)))))
    parts = b"".join(random.choice(PICKLE_PARTS) for _ in range(random.choice((1, 1, 2, 5))))
    return data[:start] + parts + data[start + random.choice((0, 0, 1, len(parts))):]


def json_text(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A value of a JSON text is another one, or away, or under another name."""
    try:
        values = json.loads(data)
    except ValueError:
        return blind(data, random, others)
    holders: list[Any] = [values] if values and isinstance(values, (dict, list)) else []
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in inner if value and isinstance(value, (dict, list))]
    if not holders:
        return json.dumps(random.choice(JSON_VALUES)).encode()
    holder = random.choice(holders)
    key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    action = random.randrange(10)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[random.choice(("", "x", "depth", "prefix", "__class__"))] = holder.pop(key)
    elif action == 2 and isinstance(holder[key], (int, float)):
        holder[key] = random.choice((-1, 2, 0.5, 1000)) * holder[key]
    elif action == 3:
        depth = random.choice((5, 500, 5000))
        return json.dumps(values).encode().replace(b"[", b"[" * depth, 1)
    else:
        holder[key] = random.choice(JSON_VALUES)
    return json.dumps(values).encode()


def safetensors(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """The header with its length right, else blind."""
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.3 or length > len(data):
        return blind(data, random, others)
    header, rest = data[8:8 + length], data[8 + length:]
    changed = json_text(header, random, [header]) if random.random() < 0.7 else blind(header, random, [header])
    return len(changed).to_bytes(8, "little") + changed + rest


def tar(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A field of a member's header, its checksum right; or a whole block moved."""
    changed = bytearray(data)
    heads = [start for start in range(0, len(data) - TAR_BLOCK, TAR_BLOCK)
             if data[start + 257:start + 262] == b"ustar" or data[start + 156:start + 157] == b"S"]
    if not heads:
        return blind(data, random, others)
    start = random.choice(heads)
    if random.random() < 0.15:
        source = random.choice(heads)
        return data[:start] + data[source:source + TAR_BLOCK * random.choice((1, 2, 5))] + data[start:]
    place, length = random.choice(TAR_FIELDS)
    field = _tar_field(place, length, random)
    changed[start + place:start + place + length] = field
    changed[start + 148:start + 156] = b" " * 8
    changed[start + 148:start + 156] = b"%06o\0 " % sum(changed[start:start + TAR_BLOCK])
    return bytes(changed)


def _tar_field(place: int, length: int, random: Random) -> bytes:
    if length == 1:
        return bytes((random.choice(TAR_TYPES),))
    if length in (8, 12) and random.random() < 0.8:
        value = random.choice(TAR_NUMBERS)
        if random.random() < 0.5 and 0 <= value < 8 ** (length - 1):
            return b"%0*o\0" % (length - 1, value)
        sign = b"\xff" if value < 0 else b"\x80"
        return sign + (value % 256 ** (length - 1)).to_bytes(length - 1, "big")
    return random.choice((bytes(length), b"../" * length, b"a.png\0" * length, random.randbytes(length),
                          b"\xff" * length, b"%0*o" % (length, 0)))[:length]


def lines(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Lines of a text."""
    found = data.split(b"\n")
    more = (b"a.png, nan", b"a.png, -1", b"../a.png", b"/dev/zero", b"a.png, 1e999", b"list.txt", b"nowhere.tar",
            b".", b"\0", b", 1", b"a.png," * 50, b"x" * 5000 + b".png", b"\xff\xfe", b"s.tar/a.jpg, 2",
            "ß\u2028a.png".encode())
    found.insert(random.randrange(len(found)), random.choice(more))
    return b"\n".join(found)


STRUCTURED: dict[str, Mutation] = {
    "png": png, "jpeg": jpeg, "webp": riff, "tiff": tiff, "avif": boxes, "heic": boxes, "jxl": boxes, "pth": archive,
    "states": archive, "safetensors": safetensors, "config": json_text, "json": json_text, "shard": tar, "list": lines}


def mutated(seed: Input, random: Random) -> Input:
    """The seed with damage."""
    others = [other.data for other in seeds() if other.kind == seed.kind]
    structured = STRUCTURED.get(seed.kind, blind)
    data = seed.data
    while True:
        damage = blind if random.random() < BLIND_SHARE else structured
        try:
            data = damage(data, random, others)
        except UNSTRUCTURED:
            data = blind(data, random, others)
        if random.random() >= MORE_SHARE or not data:
            break
    return replace(seed, data=data[:LARGEST], origin=f"{seed.origin}, mutated")
