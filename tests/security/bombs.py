"""Small files that cost much where nobody bounds them: `BOMBS`, each made when it is needed, none stored."""
from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from PIL import Image

from models.config import PRESETS
from models.varsr import VARSR
from models.weights.published import to_published
from pictures.formats import AVIF, HEIF, JPEG_XL, register_plugins
from tests.conftest import jpeg_segment, png_chunk
from tests.security.fuzz_process import Input
from tests.security.fuzz_seeds import XMP, image, png, saved
from tests.security.fuzz_structures import tiff_bytes

BLOCK = 2 ** 20
ADLER = 65_521
PNG_START = b"\x89PNG\r\n\x1a\n"
SIDE_CLAIMED = 16_383  # the most that WebP holds
Entries = list[tuple[int, int, int, list[int]]]


def zeros_packed(length: int) -> bytes:
    """A zlib stream of zeros, made without going through all of them: one block, again and again."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    rest = packer.compress(bytes(length % BLOCK)) + packer.flush()
    checksum = struct.pack(">I", length % ADLER << 16 | 1)
    return b"\x78\x9c" + block * (length // BLOCK) + rest + checksum


def picture(name: str, data: bytes, reader: str = "picture") -> Input:
    """A file that is given as a picture."""
    return Input("bomb", reader, name, data)


# ---- pictures that unfold

def _gray_entries(width: int, height: int, compression: int, length: int) -> Entries:
    """Of a TIFF file whose pixels start at byte 8."""
    return [(256, 4, 1, [width]), (257, 4, 1, [height]), (258, 3, 1, [8]), (259, 3, 1, [compression]), (262, 3, 1, [1]),
            (273, 4, 1, [8]), (277, 3, 1, [1]), (278, 4, 1, [height]), (279, 4, 1, [length])]


def _tiff(*directories: Entries, pixels: bytes = bytes(8), order: str = "<") -> bytes:
    return tiff_bytes(list(directories), order, big=False, pixels=pixels, last=-1)


def tiff_tile(side: int = 20_000) -> bytes:
    """One pixel, in a tile of 400 million."""
    packed = zeros_packed(side * side)
    entries = [entry for entry in _gray_entries(1, 1, 8, len(packed)) if entry[0] not in (273, 278, 279)]
    return _tiff([*entries, (322, 4, 1, [side]), (323, 4, 1, [side]), (324, 4, 1, [8]), (325, 4, 1, [len(packed)])],
                 pixels=packed)


def tiff_strip() -> bytes:
    """One pixel, in a strip that unfolds to 400 MB."""
    packed = zeros_packed(400 * 10 ** 6)
    return _tiff(_gray_entries(1, 1, 8, len(packed)), pixels=packed)


def tiff_shared_tags(tags: tuple[int, ...], count: int = 800) -> bytes:
    """Many entries over one block of 1 MB: of the file itself, and of its EXIF directory."""
    pixels, order = bytes(BLOCK), "<"
    start = 8 + len(pixels)
    shared = b"".join(struct.pack("<HHII", 0x9000 + i, 7, BLOCK, 8) for i in range(count))
    block = struct.pack("<H", count) + shared + struct.pack("<I", 0)
    data = bytearray(_tiff([*_gray_entries(1, 1, 1, 1), (34665, 4, 1, [start]), *((tag, 7, 1, [8]) for tag in tags)],
                           pixels=pixels + block, order=order))
    directory = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, directory)[0]):
        if struct.unpack_from("<H", data, directory + 2 + 12 * i)[0] in tags:
            struct.pack_into("<II", data, directory + 2 + 12 * i + 4, BLOCK, 8)
    return bytes(data)


def tiff_pages(count: int = 16_000) -> bytes:
    """A file of very many pages."""
    return _tiff(*[_gray_entries(1, 1, 1, 1)] * count)


def tiff_samples() -> bytes:
    """65,535 samples a pixel, and a file that has them."""
    entries = [(tag, kind, count, [65_535] if tag == 277 else values)
               for tag, kind, count, values in _gray_entries(64, 64, 8, 300_000)]
    return _tiff(entries, pixels=zeros_packed(64 * 64 * 65_535))


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes], color: int = 0) -> bytes:
    """A black picture, 8 bits gray, or RGBA with color 6."""
    row = 1 + width * (4 if color == 6 else 1)
    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return (PNG_START + png_chunk(b"IHDR", head) + b"".join(png_chunk(*each) for each in chunks)
            + png_chunk(b"IDAT", zeros_packed(row * height)) + png_chunk(b"IEND", b""))


def deep_png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of 16 bits, which libvips reads."""
    head = struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0)
    return (PNG_START + png_chunk(b"IHDR", head) + b"".join(png_chunk(*each) for each in chunks)
            + png_chunk(b"IDAT", zlib.compress(bytes(10))) + png_chunk(b"IEND", b""))


def ico() -> bytes:
    """An icon whose size says 0 (which means 256) and whose picture has 144 million pixels."""
    inner = png_of(12_000, 12_000, color=6)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def jpeg_xl() -> bytes | None:
    """7000 x 7000 pixels of one colour in a few bytes."""
    if not JPEG_XL:
        return None
    register_plugins()
    return saved(Image.new("RGB", (7000, 7000), (9, 99, 199)), "JXL", effort=1, quality=50)


def gif_frames(count: int = 200_000) -> bytes:
    """Very many frames of one pixel."""
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\x02\x02D\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


def gif_canvas() -> bytes:
    """Frames that the background takes the place of, the second so far out that the canvas grows beyond all limits."""
    def frame(left: int, top: int) -> bytes:
        place = struct.pack("<HHHHB", left, top, 30_000, 30_000, 0)
        return b"\x21\xf9\x04\x08\0\0\0\0\x2c" + place + b"\x02\x02D\1\0"
    frames = frame(0, 0) + frame(20_000, 20_000) + frame(0, 0)
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frames + b";"


def jpeg_scans(count: int = 20_000, side: int = 4000) -> bytes:
    """A progressive picture of very many scans; each goes over all blocks, and none says anything."""
    tables = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    tables += jpeg_segment(0xC4, b"\0" + bytes((1, *[0] * 15)) + b"\0")  # for the first scan: "no difference"
    tables += jpeg_segment(0xC4, b"\x10" + bytes((1, *[0] * 15)) + b"\xe0")  # for the others: 2^14 empty blocks or more
    blocks = (side // 8) ** 2
    first = jpeg_segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8 + 1)
    runs = "".join("0" + "1" * 14 for _ in range(-(-blocks // 32_767)))
    bits = (runs + "1" * (-len(runs) % 8)).encode()
    run = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = jpeg_segment(0xDA, b"\1\1\0\1\1\0") + run
    frame = jpeg_segment(0xC2, struct.pack(">BHHB3B", 8, side, side, 1, 1, 0x11, 0))
    return b"\xff\xd8" + tables + frame + first + scan * count + b"\xff\xd9"


def laughs() -> bytes:
    """A packet with a gain map, which is parsed, and entities that unfold to many gigabytes."""
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 11))
    return f"<!DOCTYPE x [{entities}]>".encode() + XMP[XMP.index(b"<x:"):].replace(b"</rdf:RDF>", b"&a10;</rdf:RDF>")


def nested_xmp(depth: int = 100_000) -> bytes:
    """A packet with a gain map and elements in elements in elements."""
    return XMP.replace(b"</rdf:RDF>", b"<a>" * depth + b"</a>" * depth + b"</rdf:RDF>")


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG file with more segments."""
    plain = saved(image(), "JPEG")
    return plain[:20] + b"".join(jpeg_segment(*each) for each in segments) + plain[20:]


def xmp_png(packet: bytes) -> bytes:
    """A PNG file whose EXIF has a comment, so that a result's settings go into its XMP."""
    comment = _tiff([(37510, 7, 14, list(b"ASCII\0\0\0theirs"))])
    return png((b"eXIf", comment), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet))


def claimed(kind: str) -> Callable[[], bytes | None]:
    """A small picture whose header claims 16,383 a side."""
    def make() -> bytes | None:
        register_plugins()
        side = SIDE_CLAIMED
        if kind == "WEBP":
            data = bytearray(saved(image(), kind, lossless=True))
            place = data.index(b"VP8L") + 9
            rest = struct.unpack_from("<I", data, place)[0] >> 28 << 28
            struct.pack_into("<I", data, place, rest | side - 1 | (side - 1) << 14)
            return bytes(data)
        if not {"AVIF": AVIF, "HEIF": HEIF}[kind]:
            return None
        data = bytearray(saved(image(), kind))
        place = data.index(b"ispe") + 8
        data[place:place + 8] = struct.pack(">II", side, side)
        return bytes(data)
    return make


# ---- weights

def _zipped(body: bytes, packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as file:
        file.writestr("archive/data.pkl", body)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/data/0", bytes(64))
    return buffer.getvalue()


def pickled_dtype() -> bytes:
    """A NumPy number of 400 MB."""
    return _zipped(b"\x80\2cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0a\0\0\0V400000000\x89\x88\x87R\x85R.")


def pickled_zeros() -> bytes:
    """A pickle that is packed, and has 256 MB."""
    return _zipped(b"\x80\2B" + struct.pack("<I", 2 ** 28) + bytes(2 ** 28) + b".", zipfile.ZIP_DEFLATED)


def pickled_memory() -> bytes:
    """A memo that doubles a list thirty times by reference; nobody may write it out."""
    return _zipped(b"\x80\2]q\0" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 40)) + b".")


class Gadget:
    """What its pickle does: a call that never returns."""

    def __reduce__(self) -> tuple[Callable, tuple[float]]:
        import time
        return time.sleep, (3600.0,)


def strided_model() -> bytes:
    """A published model of a billion values, all of them the same one."""
    config = PRESETS["varsr-d24"]
    with torch.device("meta"):
        shapes = to_published(config, VARSR(config).state_dict())
    one = torch.zeros(1)
    parts = ({name: one.expand(tensor.shape) if tensor.is_floating_point() else
              torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in part.items()}
             for part in (shapes.transformer, shapes.vqvae))
    transformer, vqvae = parts
    levels = [config.prefix_tokens + 1, *(side * side for side in config.vqvae.scales[1:])]
    transformer["lvl_1L"] = torch.repeat_interleave(torch.arange(len(levels)), torch.tensor(levels))[None]
    buffer = io.BytesIO()
    torch.save({"trainer": {"var_wo_ddp": transformer, "vae_local": vqvae}}, buffer)
    return buffer.getvalue()


def model(name: str, data: bytes) -> Input:
    """A file that is given as a model."""
    return Input("bomb", "model", name, data)


def config(**changes: object) -> Input:
    """A model folder whose configuration has other values."""
    values = {"format": 1, **asdict(PRESETS["varsr-debug"])}
    for path, value in changes.items():
        holder = values
        *parents, last = path.split("__")
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
    header = b'{"__metadata__":{}}'
    return Input("bomb", "model", "config.json", json.dumps(values).encode(),
                 {"model.safetensors": len(header).to_bytes(8, "little") + header})


def nested(depth: int = 100_000) -> Input:
    """A configuration of lists in lists."""
    return replace(config(), data=b'{"format": 1, "name": ' + b"[" * depth + b"]" * depth + b"}")


# ---- shards

def shard(*members: tuple[bytes, int, bytes]) -> Input:
    """A shard of members: type, claimed size, and what follows the header."""
    data = b""
    for kind, size, body in members:
        head = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
        head[156:157] = kind
        head[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256 ** 11).to_bytes(11, "big")
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        data += bytes(head) + body + bytes(-len(body) % 512)
    return Input("bomb", "list", "s.tar", data + bytes(1024))


BOMBS: dict[str, Callable[[], Input | None]] = {
    "a TIFF of one pixel with a tile of 20000 a side": lambda: picture("a.tif", tiff_tile()),
    "a TIFF of one pixel with a tile of 60000 a side": lambda: picture("a.tif", tiff_tile(60_000)),
    "a TIFF of one pixel with a strip of 400 MB": lambda: picture("a.tif", tiff_strip()),
    "800 EXIF tags of a TIFF over one block": lambda: picture("a.tif", tiff_shared_tags(())),
    "17 tags of a TIFF over one block": lambda: picture("a.tif", tiff_shared_tags(
        (270, 271, 272, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34675, 40091, 40092, 40093, 40094, 40095))),
    "800 EXIF tags of a TIFF over one block, written again":
        lambda: picture("a.tif", tiff_shared_tags(()), "result"),
    "a TIFF of 16000 pages": lambda: picture("a.tif", tiff_pages()),
    "a TIFF with 65535 samples a pixel": lambda: picture("a.tif", tiff_samples()),
    "an eXIf chunk of repeated headers": lambda: picture("a.png", png((b"eXIf", b"Exif\0\0" * 200_000))),
    "an eXIf chunk of 50 MB": lambda: picture(
        "a.png", png((b"eXIf", b"II*\0\x08\0\0\0" + bytes(50 * BLOCK))), "result"),
    "a zTXt chunk of 500 MB": lambda: picture("a.png", png((b"zTXt", b"Comment\0\0" + zeros_packed(500 * BLOCK)))),
    "20 zTXt chunks of 50 MB, written again": lambda: picture(
        "a.png", png(*[(b"zTXt", b"Comment\0\0" + zeros_packed(50 * BLOCK))] * 20), "result"),
    "an iTXt packet of 500 MB": lambda: picture("a.png", png(
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros_packed(500 * BLOCK)))),
    "an iCCP chunk of 500 MB": lambda: picture("a.png", png((b"iCCP", b"p\0\0" + zeros_packed(500 * BLOCK)))),
    "an iCCP chunk of 500 MB, 16 bits": lambda: picture("a.png", deep_png(
        (b"iCCP", b"p\0\0" + zeros_packed(500 * BLOCK)))),
    "a zTXt chunk of 500 MB, 16 bits": lambda: picture("a.png", deep_png(
        (b"zTXt", b"Comment\0\0" + zeros_packed(500 * BLOCK)))),
    "50000 texts, written again": lambda: picture("a.png", png(*[(b"tEXt", b"a\0b")] * 50_000), "result"),
    "PNG rows beyond the picture": lambda: picture("a.png", png_of(1, 1).replace(
        png_of(1, 1)[33:], png_chunk(b"IDAT", zeros_packed(500 * BLOCK)) + png_chunk(b"IEND", b""))),
    "an icon of 12000 a side": lambda: picture("a.png", ico()),
    "a JPEG XL of 7000 a side": lambda: None if (data := jpeg_xl()) is None else picture("a.jxl", data),
    "an EPS called .png": lambda: picture("a.png", saved(image(), "EPS")),
    "a GIF of 200000 frames": lambda: picture("a.gif", gif_frames()),
    "a GIF whose canvas grows": lambda: picture("a.gif", gif_canvas()),
    "a PNG that claims 2^31 frames": lambda: picture("a.png", png((b"acTL", struct.pack(">II", 2 ** 31 - 1, 0)))),
    "a PNG of 20000 a side": lambda: picture("a.png", png_of(20_000, 20_000)),
    "a JPEG of 20000 scans": lambda: picture("a.jpg", jpeg_scans()),
    "entities in XMP": lambda: picture("a.png", xmp_png(laughs())),
    "deep XMP": lambda: picture("a.png", xmp_png(nested_xmp())),
    "openings of elements in XMP, written again": lambda: picture("a.png", xmp_png(
        b"<rdf:Description " * 61_000 + b"</rdf:RDF>"), "result"),
    "20000 comments, written again": lambda: picture("a.jpg", jpeg_with(*[(0xFE, b"abc")] * 20_000), "result"),
    "20000 parts of a profile": lambda: picture(
        "a.jpg", jpeg_with(*[(0xE2, b"ICC_PROFILE\0\1\1" + bytes(40))] * 20_000)),
    **{f"{kind} that claims {SIDE_CLAIMED} a side":
       lambda kind=kind: None if (data := claimed(kind)()) is None else picture("a." + kind.lower(), data)
       for kind in ("WEBP", "AVIF", "HEIF")},
    "a NumPy type of 400 MB": lambda: model("VARSR.pth", pickled_dtype()),
    "a packed pickle of 256 MB": lambda: model("VARSR.pth", pickled_zeros()),
    "a list of 2^40 elements by reference": lambda: model("VARSR.pth", pickled_memory()),
    "a model of a billion values in one": lambda: model("VARSR.pth", strided_model()),
    "a pickle of 100000 tuples in tuples": lambda: model("VARSR.pth", _zipped(b"\x80\2N" + b"\x85" * 100_000 + b".")),
    "a state of 100000 tuples in tuples": lambda: Input(
        "bomb", "states", "state-00000007.pt", _zipped(b"\x80\2N" + b"\x85" * 100_000 + b".")),
    "a state that runs": lambda: Input("bomb", "states", "state-00000007.pt", _zipped(pickle.dumps(Gadget(), 2))),
    "a configuration of depth 4000": lambda: config(transformer__depth=4000),
    "a configuration of depth 10^9": lambda: config(transformer__depth=10 ** 9),
    "a configuration of 10^9 residual blocks": lambda: config(vqvae__res_blocks=10 ** 9),
    "a configuration of width 2^40": lambda: config(transformer__width=2 ** 40),
    "a configuration of 10^8 classes": lambda: config(transformer__class_rows=10 ** 8),
    "a configuration of refiner steps": lambda: config(refiner__train_steps=10 ** 9),
    "negative channels": lambda: config(vqvae__latent_channels=-8),
    "a scale of 10^6": lambda: config(vqvae__scales=[1, 10 ** 6]),
    "a phi count of 10^8": lambda: config(vqvae__phi_count=10 ** 8),
    "lists in lists": nested,
    "a member of negative size": lambda: shard((b"0", -512, b""), (b"0", -1024, b"")),
    "a member of -1 bytes": lambda: shard((b"0", -1, b"")),
    "a member of 10^12 bytes": lambda: shard((b"0", 10 ** 12, bytes(512))),
    "a long name of 10^12 bytes": lambda: shard((b"L", 10 ** 12, bytes(512))),
    "a pax header of 10^12 bytes": lambda: shard((b"x", 10 ** 12, bytes(512))),
    "5000 long names in a row": lambda: shard(*[(b"L", 6, b"a.png\0")] * 5000),
    "5000 pax headers in a row": lambda: shard(*[(b"x", 17, b"17 path=abcd.png\n")] * 5000),
}
