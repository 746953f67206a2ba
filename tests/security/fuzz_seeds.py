"""What a fuzz run starts from: small whole files of every kind that is read, made by other libraries and by hand."""
from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import tempfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image, ImageCms
from torch import Tensor

from models.config import PRESETS
from models.varsr import VARSR
from models.vqvae import VQVAE
from models.weights.save import save_pretrained
from models.weights.tokenizer_file import write_tokenizer
from pictures.formats import AVIF, HEIF, JPEG_XL, register_plugins
from tests.conftest import color_profile, jpeg_segment, png_chunk
from tests.recipe import SMALL, config_weights, write_published_checkpoint
from tests.security.fuzz_process import Input
from training.states import save_atomically

HEIGHT, WIDTH = 32, 48
XMP = (b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
       b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
       b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" '
       b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"/></rdf:RDF></x:xmpmeta>')
IPTC = b"\x1c\x02\x78\x00\x09a caption\x1c\x02\x19\x00\x07keyword"
PHOTOSHOP = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)
PNG_HEAD = 33  # signature and IHDR
SRGB = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
SRGB[24:36] = bytes(12)  # without the time when it was made: the seeds are the same every day
TIFF_LIKE = {"compression": "tiff_deflate"}


@cache
def photo(channels: int = 3, deep: bool = False) -> np.ndarray:
    """Something like a photograph: slopes, an edge, noise; (h, w, channels), or (h, w) for one."""
    random = np.random.default_rng(channels)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    base = np.stack([(x * (3 + c) + y * (5 - c)) % 256 for c in range(channels)], axis=-1).astype(np.float64)
    base[:, WIDTH // 2:] *= 0.6
    base = (base + random.normal(0, 4, base.shape)).clip(0, 255)
    pixels = (base * 257).astype(np.uint16) if deep else base.astype(np.uint8)
    return pixels[:, :, 0] if channels == 1 else pixels


def image(mode: str = "RGB") -> Image.Image:
    """The photograph in a mode of Pillow's."""
    return Image.fromarray(photo()).convert(mode) if mode != "LAB" else Image.frombytes(
        "LAB", (WIDTH, HEIGHT), photo().tobytes())


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A picture encoded by Pillow."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def exif() -> Image.Exif:
    """A camera's block: orientation, maker note, position."""
    block = Image.Exif()
    block.update({0x010E: "a description", 0x010F: "maker", 0x0112: 6, 0x011A: 300.0, 0x011B: 300.0, 0x0128: 2,
                  0x0131: "camera 1.0", 0x013B: "artist", 0xC614: "unknown"})
    block.get_ifd(0x8769).update({0x927C: b"Nikon\0\2\0\0\0II*\0\x08\0\0\0\0\0", 0x9286: b"ASCII\0\0\0theirs",
                                  0xA001: 1, 0xA002: WIDTH, 0xA003: HEIGHT, 0x829A: 0.01})
    block.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 14.0), 3: "E", 4: (11.0, 34.0, 31.0)})
    return block


def exif_with_thumbnail() -> bytes:
    """The block with a second directory that holds a small JPEG."""
    block = bytearray(exif().tobytes())
    start, thumbnail = 6, saved(image().resize((12, 8)), "JPEG")  # behind "Exif\0\0"
    order = "<" if block[start:start + 2] == b"II" else ">"
    offset = struct.unpack_from(order + "I", block, start + 4)[0]
    count = struct.unpack_from(order + "H", block, start + offset)[0]
    place = len(block) - start
    struct.pack_into(order + "I", block, start + offset + 2 + 12 * count, place)
    entries = ((0x0103, 3, 6), (0x0201, 4, place + 42), (0x0202, 4, len(thumbnail)))
    block += struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        block += struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + ("H2x" if kind == 3 else "I"), value)
    return bytes(block + struct.pack(order + "I", 0) + thumbnail)


def png(*chunks: tuple[bytes, bytes], mode: str = "RGB", **options: object) -> bytes:
    """A PNG file with more chunks before its pixels."""
    data = saved(image(mode), "PNG", **options)
    return data[:PNG_HEAD] + b"".join(png_chunk(*each) for each in chunks) + data[PNG_HEAD:]


def interlaced_png() -> bytes:
    """Adam7, gray, by hand: Pillow does not write it."""
    pixels, rows = photo(1), b""
    for top, left, down, right in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                                   (1, 0, 2, 1)):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right])
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def deep_png(channels: int) -> bytes:
    """16 bits a sample."""
    pixels = photo(channels, deep=True).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"cICP", bytes((12, 13, 0, 1)))
            + png_chunk(b"eXIf", exif().tobytes()[6:]) + png_chunk(b"IDAT", zlib.compress(rows))
            + png_chunk(b"IEND", b""))


def pngs() -> Iterator[bytes]:
    """PNG files with everything that is read of them."""
    texts = ((b"tEXt", b"Software\0somebody"), (b"zTXt", b"Copyright\0\0" + zlib.compress(b"mine" * 20)),
             (b"iTXt", b"Author\0\0\0\0\0" + "Ö".encode()), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
             (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"long" * 50)),
             (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(
                 f"\niptc\n{len(PHOTOSHOP):8d}\n{PHOTOSHOP.hex()}\n".encode())))
    yield png(*texts)
    yield png((b"eXIf", exif().tobytes()[6:]), (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)))
    yield png((b"iCCP", b"a\0\0" + zlib.compress(color_profile())))
    yield png((b"iCCP", b"g\0\0" + zlib.compress(color_profile("GRAY"))), mode="L")
    yield png((b"gAMA", struct.pack(">I", 45455)), (b"sRGB", b"\0"),
              (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)))
    yield png((b"gAMA", struct.pack(">I", 55555)))
    yield png((b"cICP", bytes((12, 13, 0, 1))), (b"mDCV", bytes(24)))
    for mode in ("L", "LA", "RGBA", "1", "P"):
        yield png(mode=mode)
    yield png(mode="P", transparency=3)
    yield png((b"tRNS", struct.pack(">3H", 1, 2, 3)))
    yield saved(image(), "PNG", save_all=True, append_images=[image().rotate(90), image().rotate(180)], duration=50)
    yield interlaced_png()
    yield from map(deep_png, (1, 2, 3, 4))


def jpegs() -> Iterator[bytes]:
    """JPEG files with everything that is read of them."""
    plain = saved(image(), "JPEG", quality=80, dpi=(300, 300))
    more = (jpeg_segment(0xED, b"Photoshop 3.0\0" + PHOTOSHOP) + jpeg_segment(0xFE, b"a comment")
            + jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))
    yield plain
    yield plain[:20] + more + plain[20:]
    yield saved(image(), "JPEG", exif=exif_with_thumbnail(), icc_profile=color_profile())
    yield saved(image(), "JPEG", progressive=True, exif=exif())
    yield saved(image("L"), "JPEG", icc_profile=color_profile("GRAY"))
    yield saved(image("CMYK"), "JPEG", icc_profile=color_profile())
    yield saved(image(), "JPEG", subsampling=2, restart_marker_blocks=2, optimize=True)
    yield saved(image(), "MPO", save_all=True, append_images=[image().rotate(180)], exif=exif())
    split = color_profile()  # over two segments
    parts = [split[:200], split[200:]]
    yield plain[:20] + b"".join(jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes((i + 1, 2)) + part)
                                for i, part in enumerate(parts)) + plain[20:]


def webps() -> Iterator[bytes]:
    """WebP files."""
    said = {"exif": exif(), "xmp": XMP, "icc_profile": color_profile()}
    yield saved(image(), "WEBP")
    yield saved(image(), "WEBP", lossless=True, **said)
    yield saved(image("RGBA"), "WEBP", **said)
    yield saved(image("RGBA"), "WEBP", lossless=True)
    yield saved(image(), "WEBP", save_all=True, append_images=[image().rotate(180), image()], duration=40, **said)


def bmps() -> Iterator[bytes]:
    """BMP files of every depth."""
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield saved(image(mode), "BMP")
    palette = bytes(value for i in range(16) for value in (i * 16, 255 - i * 16, i, 0))
    pixels = (photo(1) >> 4)[::-1]
    packed = (pixels[:, ::2] << 4 | pixels[:, 1::2]).astype(np.uint8).tobytes()
    yield _bmp(4, 0, packed, palette)
    runs = b"".join(bytes((WIDTH, int(row[0]))) + b"\0\0" for row in photo(1)[::-1]) + b"\0\1"
    yield _bmp(8, 1, runs, bytes(range(256)) * 4)


def _bmp(bits: int, compression: int, data: bytes, palette: bytes) -> bytes:
    start = 54 + len(palette)
    return (struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
            + struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, compression, len(data), 2835, 2835,
                          len(palette) // 4, 0) + palette + data)


def gifs() -> Iterator[bytes]:
    """GIF files, with a comment, moving, transparent."""
    yield saved(image("P"), "GIF", comment=b"a remark")
    yield saved(image("L"), "GIF", transparency=7)
    frames = [image().rotate(angle).convert("P") for angle in (90, 180)]
    yield saved(image("P"), "GIF", save_all=True, append_images=frames, duration=40, disposal=2, transparency=3)


def tgas() -> Iterator[bytes]:
    """TGA files."""
    for mode in ("RGB", "RGBA", "L", "P", "LA"):
        yield saved(image(mode), "TGA")
        yield saved(image(mode), "TGA", compression="tga_rle")


def netpbms() -> Iterator[bytes]:
    """PPM, PGM and PBM files, binary and ASCII, and PFM."""
    yield from (saved(image(mode), "PPM") for mode in ("RGB", "L", "1"))
    yield f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + photo(1, deep=True).astype(">u2").tobytes()
    yield f"P6 {WIDTH} {HEIGHT} 1023\n".encode() + (photo(3, deep=True) >> 6).astype(">u2").tobytes()
    yield f"P2\n# remark\n{WIDTH} {HEIGHT}\n255\n".encode() + " ".join(map(str, photo(1).ravel())).encode()
    yield f"P3 {WIDTH} {HEIGHT} 255\n".encode() + " ".join(map(str, photo(3).ravel())).encode()
    yield f"P1 {WIDTH} {HEIGHT}\n".encode() + " ".join(map(str, photo(1).ravel() & 1)).encode()
    yield f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + (photo(1) / 255).astype("<f4").tobytes()


def tiffs_by_pillow() -> Iterator[bytes]:
    """TIFF files of Pillow's kinds, with EXIF."""
    for mode, options in (("RGB", {}), ("RGB", {"compression": "tiff_lzw"}), ("RGB", {"compression": "jpeg"}),
                          ("RGBA", TIFF_LIKE), ("L", {"compression": "packbits"}), ("P", {}), ("LA", {}),
                          ("1", {"compression": "group4"}), ("1", {"compression": "group3"}), ("CMYK", TIFF_LIKE),
                          ("LAB", {}), ("YCbCr", {}), ("I;16", {}), ("I", {}), ("F", {}), ("RGBX", {})):
        yield saved(image(mode), "TIFF", **options)
    yield saved(image(), "TIFF", exif=exif(), icc_profile=color_profile(), dpi=(300, 300), **TIFF_LIKE)
    yield saved(image("CMYK"), "TIFF", icc_profile=color_profile())
    yield saved(image(), "TIFF", save_all=True, append_images=[image("L"), image("1")], **TIFF_LIKE)
    yield saved(image(), "TIFF", big_tiff=True, exif=exif(), **TIFF_LIKE)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    """A TIFF file by tifffile."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=bool(options.pop("bigtiff", False)),
                             byteorder=options.pop("byteorder", "<")) as writer:
        for page in range(options.pop("pages", 1)):
            writer.write(pixels, metadata=None, subfiletype=page % 2, **options)
    return buffer.getvalue()


def tiffs_by_tifffile() -> Iterator[bytes]:
    """TIFF files with tiles, planes, depths and byte orders that Pillow does not write."""
    color, deep = photo(3), photo(3, deep=True)
    floats = (photo(3) / 255).astype(np.float32)
    blocks = {700: XMP, 33723: IPTC, 34377: PHOTOSHOP, 34675: bytes(SRGB)}
    tags = [(tag, 7, len(data), data, True) for tag, data in blocks.items()] + [(274, 3, 1, 6, True)]
    rgb = {"photometric": "rgb"}
    for order in "<>":
        yield tiff(color, byteorder=order, extratags=tags, resolution=(300, 300), **rgb)
        yield tiff(deep, byteorder=order, compression="zlib", predictor=True, extratags=tags, **rgb)
        yield tiff(floats, byteorder=order, compression="zlib", predictor=True, **rgb)
        yield tiff(deep, byteorder=order, bigtiff=True, tile=(16, 16), compression="lzw", extratags=tags, **rgb)
        yield tiff(color, byteorder=order, pages=3, rowsperstrip=8, **rgb)
    yield tiff(color, tile=(16, 16), compression="jpeg", **rgb)
    yield tiff(color, tile=(16, 32), compression="packbits", **rgb)
    yield tiff(np.ascontiguousarray(color.transpose(2, 0, 1)), planarconfig="separate", **rgb)
    yield tiff(np.ascontiguousarray(deep.transpose(2, 0, 1)), planarconfig="separate", tile=(16, 16), **rgb)
    yield tiff(photo(4), extrasamples=["assocalpha"], **rgb)
    yield tiff(photo(4, deep=True), extrasamples=["unassalpha"], **rgb)
    yield tiff(photo(4), photometric="separated", compression="zlib", extratags=tags)
    yield tiff(photo(4, deep=True), photometric="separated")
    yield tiff(photo(5), photometric="rgb", extrasamples=["unspecified", "unspecified"])
    for kind in (np.int8, np.int16, np.uint32, np.float16, np.float32, np.float64):
        yield tiff(photo(1).astype(kind), photometric="minisblack")
    yield tiff(photo(1).astype(np.float32), photometric="minisblack", byteorder=">", tile=(16, 16))
    yield tiff(photo(1, deep=True), photometric="miniswhite")
    yield tiff(photo(3), photometric="cielab")
    for name in ("zstd", "lerc", "webp", "jpegxl", "png", "lzma"):
        try:
            yield tiff(color, compression=name, **rgb)
        except (ValueError, KeyError, ImportError, RuntimeError):  # needs another imagecodecs
            continue


def plugin_pictures(kind: str) -> Iterator[bytes]:
    """AVIF, HEIF or JPEG XL files, where they can be written."""
    register_plugins()
    said = {"exif": exif().tobytes(), "icc_profile": color_profile()}
    options = {"quality": 60, **({"max_threads": 1} if kind == "AVIF" else {})}  # with more, bytes differ each time
    yield saved(image(), kind, **options)
    yield saved(image(), kind, **options, **said, **({"xmp": XMP} if kind != "JXL" else {}))
    yield saved(image("RGBA"), kind, **options)
    yield saved(image("L"), kind, **options)
    if kind != "JXL":
        yield _without_time(saved(image(), kind, save_all=True, append_images=[image().rotate(180)], **options))


def _without_time(data: bytes) -> bytes:
    """An animation that does not say when it was made: the seeds are the same every day."""
    changed = bytearray(data)
    for name in (b"mvhd", b"tkhd", b"mdhd"):
        if (place := data.find(name)) >= 0:
            changed[place + 8:place + 24] = bytes(16)
    return bytes(changed)


def foreign_pictures() -> Iterator[bytes]:
    """Kinds that are not read, named like one that is."""
    for kind, picture in (("ICO", image("RGBA")), ("PCX", image()), ("ICNS", image("RGBA").resize((32, 32))),
                          ("EPS", image()), ("DDS", image("RGBA")), ("SGI", image()), ("IM", image()),
                          ("BLP", image("P")), ("MSP", image("1")), ("XBM", image("1")), ("JPEG2000", image())):
        try:
            yield saved(picture, kind)
        except (OSError, KeyError, ValueError):
            continue
    yield b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, HEIGHT, WIDTH, 8, 3) + bytes(12) + b"\0\0" + photo(
        3).tobytes()
    yield b'<svg xmlns="http://www.w3.org/2000/svg" width="48" height="32"><rect width="9" height="9"/></svg>'
    yield b"#FITS" + bytes(100)
    yield b"SIMPLE  =                    T" + b" " * 2850


def pictures() -> Iterator[Input]:
    """Every kind of picture."""
    makers: dict[str, tuple[str, Callable[[], Iterator[bytes]]]] = {
        "png": ("a.png", pngs), "jpeg": ("a.jpg", jpegs), "webp": ("a.webp", webps), "bmp": ("a.bmp", bmps),
        "gif": ("a.gif", gifs), "tga": ("a.tga", tgas), "ppm": ("a.ppm", netpbms), "tiff": ("a.tif", tiffs_by_pillow),
        "tiff2": ("a.tif", tiffs_by_tifffile), "foreign": ("a.png", foreign_pictures)}
    makers |= {kind: (f"a.{kind}", lambda format=format: plugin_pictures(format)) for kind, format, there in
               (("avif", "AVIF", AVIF), ("heic", "HEIF", HEIF), ("jxl", "JXL", JPEG_XL)) if there}
    for kind, (name, make) in makers.items():
        yield from (Input(kind.rstrip("2"), "picture", name, data) for data in make())


def shards() -> Iterator[Input]:
    """Tar files of pictures in every dialect, and lists of pictures."""
    long = "folder" * 20 + "/" + "name" * 20 + ".png"
    members = {"a.jpg": saved(image(), "JPEG"), "b/b.png": png(), "b.txt": b"a caption", long: png(mode="L"),
               "ö.webp": saved(image(), "WEBP")}
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if dialect == tarfile.PAX_FORMAT:
                    member.pax_headers = {"comment": "x" * 30, "GNU.sparse.name": "c.png"} if name == "a.jpg" else {}
                archive.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
            archive.addfile(link)
        yield Input("shard", "list", "s.tar", buffer.getvalue())
    yield Input("shard", "list", "s.tar", sparse_shard(members["b/b.png"]))
    listed = "# a comment\na.png\na.png, 2.5\n\nwith, comma.png, .5\nfolder/b.png, 1e3\ns.tar, 3\n"
    yield Input("list", "list", "list.txt", listed.encode("utf-8-sig"),
                {"a.png": members["b/b.png"], "s.tar": buffer.getvalue()})


def sparse_shard(data: bytes) -> bytes:
    """One member of the old GNU sparse type: two pieces."""
    member = tarfile.TarInfo("sparse.png")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, len(data)
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    pieces = ((0, len(data) // 2), (len(data) // 2, len(data) - len(data) // 2))
    for i, numbers in enumerate(pieces):
        head[386 + 24 * i:410 + 24 * i] = b"".join(b"%011o\0" % number for number in numbers)
    head[483:495] = b"%011o\0" % len(data)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data + bytes(-len(data) % 512) + bytes(1024)


def models() -> Iterator[Input]:
    """Weight files in every format: published (zip and the older one), our folder, a tokenizer alone."""
    small = replace(SMALL, vqvae=replace(SMALL.vqvae, multipliers=(1, 1)))
    transformer, vqvae = config_weights(small)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_published_checkpoint(folder, transformer, vqvae)
        files = {name: (folder / name).read_bytes() for name in ("VARSR.pth", "VQVAE.pth")}
        yield Input("pth", "model", "VARSR.pth", files["VARSR.pth"], {"VQVAE.pth": files["VQVAE.pth"]})
        yield Input("pth", "vqvae", "VQVAE.pth", files["VQVAE.pth"])
        whole = _in_one_storage({**transformer, **{f"vqvae {name}": tensor for name, tensor in vqvae.items()}})
        parts = {"var_wo_ddp": {name: tensor for name, tensor in whole.items() if name in transformer},
                 "vae_local": {name.removeprefix("vqvae "): tensor for name, tensor in whole.items()
                               if name.startswith("vqvae ")}}
        for zipped in (True, False):
            torch.save({"trainer": parts, "args": Namespace(depth=2)}, folder / "whole.pth",
                       _use_new_zipfile_serialization=zipped)
            yield Input("pth", "model", "whole.pth", _without_address((folder / "whole.pth").read_bytes()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, tokenizer = VARSR(PRESETS["varsr-debug"]), VQVAE(PRESETS["varsr-debug"].vqvae)
        save_pretrained(model, folder / "ours", torch.bfloat16)
        config, weights = ((folder / "ours" / name).read_bytes() for name in ("config.json", "model.safetensors"))
        yield Input("safetensors", "model", "model.safetensors", weights, {"config.json": config})
        yield Input("config", "model", "config.json", config, {"model.safetensors": weights})
        write_tokenizer(tokenizer, folder / "vqvae.safetensors")
        yield Input("safetensors", "vqvae", "vqvae.safetensors", (folder / "vqvae.safetensors").read_bytes())
    yield Input("config", "config", "config.json", config)
    for preset in PRESETS.values():
        yield Input("config", "config", "config.json", preset.to_json().encode())


def _in_one_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float tensors as parts of one: the older format sorts storages by their places in memory."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    sizes = [tensor.numel() for tensor in floats.values()]
    parts = torch.cat([tensor.flatten() for tensor in floats.values()]).split(sizes)
    return {name: part.view(floats[name].shape) for name, part in zip(floats, parts, strict=True)}


def _without_address(data: bytes) -> bytes:
    """A file in the older format, whose one storage is named by its place in memory, with another name."""
    return re.sub(rb"(?<=\0)\d{12,}", lambda found: b"7" * len(found[0]), data)


def states() -> Iterator[Input]:
    """A training state and the note of the best one; the list of a hub repository's files."""
    state = {"iteration": 7, "model": {"weight": torch.arange(12.0).reshape(3, 4)},
             "random": {"torch": torch.Generator().manual_seed(0).get_state()},
             "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}}
    best = json.dumps({"iteration": 7, "score": 0.25}).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state-00000007.pt")
        save_atomically(state, path)
        newest = path.read_bytes()
        torch.save({"iteration": 1, "random": {}}, path, _use_new_zipfile_serialization=False)
        old = path.read_bytes()
    for data in (newest, old):
        yield Input("states", "states", path.name, data, {"best.json": best})
    yield Input("json", "states", "best.json", best, {path.name: newest})
    known = {"owner/name": [{"path": "a.pth", "size": 7, "sha256": "ab" * 32, "git_sha1": "cd" * 20}]}
    yield Input("json", "hub_list", ".published.json", json.dumps(known).encode())


@cache
def seeds() -> tuple[Input, ...]:
    """All of them."""
    found = [*pictures(), *shards(), *models(), *states()]
    return tuple(replace(seed, origin=f"seed {number}") for number, seed in enumerate(found))
