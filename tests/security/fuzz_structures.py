"""Files that Hypothesis makes up, well-formed outside: chunks with right checksums, directories, headers, values."""
from __future__ import annotations

import dataclasses
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from models.config import PRESETS
from tests.conftest import png_chunk
from tests.security.fuzz_mutations import (
    JSON_VALUES,
    NUMBERS,
    PICKLE_PARTS,
    PNG_NAMES,
    PNG_START,
    TAR_BLOCK,
    TAR_NUMBERS,
    TAR_TYPES,
    TIFF_COMPRESSIONS,
    TIFF_TAGS,
)
from tests.security.fuzz_process import Input
from tests.security.fuzz_seeds import IPTC, XMP, exif, png, saved, seeds
from tests.security.fuzz_seeds import image as photo_image

SIDES = st.sampled_from((1, 2, 7, 16, 32, 48, 300, 4000, 16_383, 20_000, 65_535, 2 ** 31 - 1)) | st.integers(0, 64)
SIZES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}
TIFF_NUMBERS = st.sampled_from(NUMBERS) | st.integers(0, 300)


# ---- splices of bytes into whole files

@st.composite
def spliced(draw: st.DrawFn) -> Input:
    """A whole file with a few pieces replaced."""
    seed = draw(st.sampled_from(seeds()))
    data = bytearray(seed.data)
    pieces = st.tuples(st.integers(0, len(data)), st.integers(0, 64), st.binary(max_size=64))
    for start, removed, piece in draw(st.lists(pieces, min_size=1, max_size=4)):
        data[start:start + removed] = piece
    return dataclasses.replace(seed, kind="spliced", data=bytes(data), origin=f"{seed.origin}, spliced")


# ---- PNG

def _packed(data: bytes) -> bytes:
    return zlib.compress(data)


PNG_TEXT = st.one_of(
    st.binary(max_size=80),
    st.tuples(st.sampled_from((b"Software", b"XML:com.adobe.xmp", b"Raw profile type iptc", b"Raw profile type exif",
                               b"Raw profile type 8bim", b"Description", b"", b"x" * 90)),
              st.sampled_from((b"\0", b"\0\0", b"\0\1", b"\0\0\0\0\0", b"\0\1\0\0\0", b"\0\1\1en\0x\0")),
              st.binary(max_size=40) | st.binary(max_size=200).map(_packed) | st.just(XMP)
              | st.builds(lambda n, text: f"\niptc\n{n:8d}\n{text}\n".encode(), st.integers(-9, 10 ** 7), st.text())
              ).map(b"".join))
PNG_BODIES: dict[bytes, SearchStrategy[bytes]] = {
    b"PLTE": st.binary(max_size=800), b"tRNS": st.binary(max_size=260),
    b"gAMA": TIFF_NUMBERS.map(lambda n: struct.pack(">I", n % 2 ** 32)),
    b"cHRM": st.lists(TIFF_NUMBERS, min_size=8, max_size=8).map(
        lambda n: struct.pack(">8I", *(i % 2 ** 32 for i in n))),
    b"cICP": st.binary(min_size=4, max_size=4) | st.binary(max_size=6), b"sRGB": st.binary(max_size=2),
    b"pHYs": st.binary(min_size=9, max_size=9), b"tEXt": PNG_TEXT, b"zTXt": PNG_TEXT, b"iTXt": PNG_TEXT,
    b"iCCP": st.binary(max_size=300).map(lambda data: b"p\0\0" + _packed(data)),
    b"eXIf": st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"II*\0\x08\0\0\0" + data)
    | st.integers(0, 400).map(lambda length: exif().tobytes()[6:6 + length]),
    b"acTL": st.tuples(TIFF_NUMBERS, TIFF_NUMBERS).map(lambda n: struct.pack(">II", *(i % 2 ** 32 for i in n))),
    b"fcTL": st.binary(min_size=26, max_size=26), b"fdAT": st.binary(max_size=60)}


@st.composite
def png_of_chunks(draw: st.DrawFn) -> Input:
    """A header of any kind, chunks in any order, pixels that are as long as they should be or not."""
    width, height = draw(SIDES), draw(SIDES)
    depth, color = draw(st.sampled_from(((8, 0), (8, 2), (8, 3), (8, 4), (8, 6), (16, 0), (16, 2), (16, 6), (1, 0),
                                         (4, 3), (2, 0), (16, 3), (3, 2))))
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, draw(st.sampled_from((0, 0, 0, 1))))
    names = st.sampled_from([name for name in PNG_NAMES if name in PNG_BODIES])
    chunks = draw(st.lists(names.flatmap(lambda name: st.tuples(st.just(name), PNG_BODIES[name])), max_size=6))
    row = 1 + -(-width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] // 8)
    length = min(draw(st.sampled_from((row * height, row * height, row * height - 1, 10))), 200_000)
    pixels = png_chunk(b"IDAT", _packed(draw(st.binary(min_size=1, max_size=40)).ljust(max(length, 0), b"\0")))
    parts = [png_chunk(b"IHDR", head), *(png_chunk(*each) for each in chunks)]
    parts.insert(draw(st.integers(1, len(parts))), pixels)
    return Input("png", "picture", "a.png", PNG_START + b"".join(parts) + png_chunk(b"IEND", b""))


# ---- TIFF and EXIF

@st.composite
def directory(draw: st.DrawFn) -> list[tuple[int, int, int, list[int]]]:
    """Entries: tag, type, count, values."""
    entries = draw(st.lists(st.tuples(
        st.sampled_from(TIFF_TAGS), st.sampled_from((*SIZES, 5, 10, 0, 99)), TIFF_NUMBERS,
        st.lists(TIFF_NUMBERS, min_size=1, max_size=4)), max_size=8))
    width, height = draw(SIDES), draw(SIDES)
    samples, bits = draw(st.sampled_from((1, 3, 4, 2, 5, 65_535))), draw(st.sampled_from((8, 16, 32, 1, 4, 12, 64, 0)))
    usual = {256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * min(samples, 4)),
             259: (3, [draw(st.sampled_from(TIFF_COMPRESSIONS))]), 262: (3, [draw(st.integers(0, 10))]),
             273: (4, [8]), 277: (3, [samples]), 278: (4, [draw(TIFF_NUMBERS)]), 279: (4, [draw(TIFF_NUMBERS)]),
             284: (3, [draw(st.sampled_from((1, 1, 2)))]), 317: (3, [draw(st.sampled_from((1, 1, 2, 3)))]),
             339: (3, [draw(st.sampled_from((1, 1, 2, 3)))] * min(samples, 4))}
    if draw(st.booleans()):
        usual |= {322: (4, [draw(SIDES)]), 323: (4, [draw(SIDES)]), 324: (4, [8]), 325: (4, [draw(TIFF_NUMBERS)])}
    dropped = draw(st.sets(st.sampled_from(list(usual)), max_size=2))
    return [(tag, kind, len(values), values) for tag, (kind, values) in usual.items() if tag not in dropped] + entries


def tiff_bytes(directories: list[list[tuple[int, int, int, list[int]]]], order: str, big: bool, pixels: bytes,
               last: int) -> bytes:
    """A file of these directories; values that are too long for their entry stand behind the directory.

    last: the number of the directory that follows the last one, as a loop; negative for none.
    """
    pointer, count_format, width = ("Q", "Q", 8) if big else ("I", "H", 4)
    head = (b"II" if order == "<" else b"MM") + (struct.pack(order + "HHH", 43, 8, 0) if big else
                                                 struct.pack(order + "H", 42))
    body, starts = bytearray(pixels + b"\0" * (len(pixels) % 2)), []
    first = len(head) + width
    for number, entries in enumerate(directories, start=1):
        starts.append(first + len(body))
        size = struct.calcsize(order + count_format) + len(entries) * (4 + 2 * width) + width
        after, rows = first + len(body) + size, b""
        data = b""
        for tag, kind, count, values in sorted(entries, key=lambda entry: entry[0]):
            packed = b"".join(_value(order, kind, value) for value in values)
            if len(packed) > width:
                place, data = after + len(data), data + packed
                packed = struct.pack(order + pointer, place)
            rows += struct.pack(order + "HH" + pointer, tag, kind, count % 256 ** width) + packed.ljust(width, b"\0")
        following = after + len(data)
        if number == len(directories):
            following = starts[last] if 0 <= last < len(starts) else 0
        body += struct.pack(order + count_format, len(entries)) + rows + struct.pack(order + pointer, following) + data
    return head + struct.pack(order + pointer, starts[0]) + bytes(body)


def _value(order: str, kind: int, value: int) -> bytes:
    code = SIZES.get(kind)
    if code is None:
        return struct.pack(order + "II", value % 2 ** 32, 1)
    if code in "fd":
        return struct.pack(order + code, float(value))
    if code == "s":
        return bytes((value % 256,))
    size = struct.calcsize(order + code)
    return (value % 256 ** size).to_bytes(size, "little" if order == "<" else "big")


@st.composite
def tiff_of_entries(draw: st.DrawFn) -> Input:
    """Directories of usual and unusual entries, in both orders and sizes, with too few or packed pixels."""
    directories = draw(st.lists(directory(), min_size=1, max_size=3))
    pixels = draw(st.sampled_from((bytes(64), bytes(5000), _packed(bytes(5000)), _packed(bytes(200_000)), XMP + IPTC)))
    data = tiff_bytes(directories, draw(st.sampled_from("<>")), draw(st.booleans()), pixels, draw(st.integers(-3, 2)))
    return Input("tiff", "picture", "a.tif", data)


@st.composite
def exif_of_entries(draw: st.DrawFn) -> Input:
    """A whole PNG or JPEG file with an EXIF block of such directories."""
    directories = draw(st.lists(st.lists(st.tuples(
        st.sampled_from((*TIFF_TAGS, 0x927C, 0x9286, 0xA002, 513, 514)), st.sampled_from((*SIZES, 5, 10)),
        TIFF_NUMBERS, st.lists(TIFF_NUMBERS, min_size=1, max_size=8)), min_size=1, max_size=10), min_size=1,
        max_size=3))
    order, big = draw(st.sampled_from("<>")), draw(st.integers(0, 9)) == 0
    block = tiff_bytes(directories, order, big, b"", draw(st.integers(-3, 2)))
    if draw(st.booleans()):
        return Input("png", "picture", "a.png", png((b"eXIf", block)))
    return Input("jpeg", "picture", "a.jpg", saved(photo_image(), "JPEG", exif=b"Exif\0\0" + block))


# ---- JSON

JSON = st.recursive(
    st.sampled_from(JSON_VALUES) | st.integers(-2 ** 70, 2 ** 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=8)


@st.composite
def config_of_values(draw: st.DrawFn) -> Input:
    """A model's configuration with other values in a few of its fields."""
    values = json.loads(PRESETS[draw(st.sampled_from(list(PRESETS)))].to_json())
    for _ in range(draw(st.integers(1, 4))):
        part = draw(st.sampled_from(("vqvae", "transformer", "refiner", "generation", "prefix", "")))
        holder = values["transformer"]["prefix"] if part == "prefix" and isinstance(values["transformer"], dict) and \
            isinstance(values["transformer"].get("prefix"), dict) else values.get(part, values)
        if not isinstance(holder, dict) or not holder:
            continue
        holder[draw(st.sampled_from(sorted(holder)))] = draw(st.integers(-4, 4000) | JSON)
    text = json.dumps(values).encode()
    model = next(seed for seed in seeds() if seed.kind == "config" and seed.reader == "model")
    if draw(st.booleans()):
        return dataclasses.replace(model, data=text)
    return Input("config", "config", "config.json", text)


@st.composite
def json_of_values(draw: st.DrawFn) -> Input:
    """The small JSON files."""
    name = draw(st.sampled_from(("best.json", ".published.json")))
    value = draw(JSON)
    if draw(st.booleans()):
        value = {"owner/name": value} if name == ".published.json" else {"iteration": value, "score": draw(JSON)}
    return Input("json", "states" if name == "best.json" else "hub_list", name, json.dumps(value).encode())


# ---- tar

@st.composite
def tar_of_headers(draw: st.DrawFn) -> Input:
    """Members of any type, size and name, with right checksums."""
    picture, data = png(mode="L"), b""
    names = st.sampled_from((b"a.png", b"b.jpg", b"x/c.webp", b".hidden.png", b"../d.png", b"/e.png", b"", b"\xff.png",
                             b"12 size=-512\n"))
    pax = st.sampled_from((b"20 path=from_pax.png\n", b"12 size=-512\n", b"22 size=1000000000000\n", b"99999 x=1\n",
                           b"0 x=1\n", b"28 GNU.sparse.name=spars.png\n",
                           b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
                           b"30 GNU.sparse.map=0,10,-5,20\n", b"x" * 40))
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(TAR_TYPES))
        body = draw(pax) if kind in b"xgX" else draw(names) + b"\0" if kind in b"LK" else picture
        size = draw(st.just(len(body)) | st.sampled_from(TAR_NUMBERS))
        head = bytearray(TAR_BLOCK)
        name = draw(names)
        head[:len(name)] = name
        head[100:108], head[156], head[257:265] = b"0000644\0", kind, b"ustar\x0000"
        head[124:136] = b"%011o\0" % size if 0 <= size < 8 ** 11 else (b"\xff" if size < 0 else b"\x80") + (
            size % 256 ** 11).to_bytes(11, "big")
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        data += bytes(head) + body + bytes(-len(body) % TAR_BLOCK)
    return Input("shard", "list", "s.tar", data + bytes(draw(st.sampled_from((0, 512, 1024)))))


# ---- pickles

@st.composite
def pickle_of_opcodes(draw: st.DrawFn) -> Input:
    """A weight file or training state whose pickle is made of any opcodes, in both formats."""
    parts = draw(st.lists(st.sampled_from(PICKLE_PARTS) | st.binary(max_size=3), max_size=14))
    body = b"\x80\2" + b"".join(parts) + b"."
    if draw(st.booleans()):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("archive/data.pkl", body)
            file.writestr("archive/version", "3\n")
            file.writestr("archive/data/0", bytes(48))
        data = buffer.getvalue()
    else:
        magic = b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\x03.\x80\2}q\0."
        data = magic + body + b"\x80\2]q\0."
    if draw(st.booleans()):
        return Input("states", "states", "state-00000007.pt", data, {"best.json": b"{}"})
    return Input("pth", "model", "VARSR.pth", data)


@dataclass(frozen=True)
class Structure:
    """How files of a kind are made up."""

    kind: str
    make: Callable[[], SearchStrategy[Input]]


STRUCTURES = {
    "splices": Structure("spliced", spliced), "chunks": Structure("png", png_of_chunks),
    "directories": Structure("tiff", tiff_of_entries), "exif": Structure("jpeg", exif_of_entries),
    "configurations": Structure("config", config_of_values), "values": Structure("json", json_of_values),
    "headers": Structure("shard", tar_of_headers), "opcodes": Structure("pth", pickle_of_opcodes)}


def made_up(name: str, count: int, seed: int) -> list[Input]:
    """So many files of a structure (fewer where there are no more); the same for the same seed."""
    found: list[Input] = []

    @seeded(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(STRUCTURES[name].make())
    def collect(example: Input) -> None:
        found.append(dataclasses.replace(example, origin=f"{example.origin or name}, made up with seed {seed}"))
    collect()
    return found
