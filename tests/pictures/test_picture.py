"""Reading every kind of file, against Pillow, tifffile and formulas; every bad file in one line."""
from __future__ import annotations

import importlib.util
import io
import itertools
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import color_profile, icc_file, icc_number, png_chunk
from PIL import Image, ImageCms, ImageOps

from pictures.formats import AVIF, HEIF, ImageError, register_plugins, vips
from pictures.picture import read_header, read_picture
from pictures.result_file import ResultFile

RNG = np.random.default_rng(0)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def noise(*shape: int, dtype: type = np.uint8, top: int | None = None) -> np.ndarray:
    return RNG.integers(0, (top or np.iinfo(dtype).max) + 1, shape, dtype=dtype)


def png(width: int, height: int, depth: int, color: int, rows: np.ndarray, **chunks: bytes) -> bytes:
    """A PNG file made by hand: Pillow writes neither 16-bit colour nor its tRNS."""
    lines = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in rows)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
            + b"".join(png_chunk(name.encode(), data) for name, data in chunks.items())
            + png_chunk(b"IDAT", zlib.compress(lines)) + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("mode, suffix, gray", [
    ("RGB", "png", False), ("L", "png", True), ("1", "png", True), ("P", "png", False), ("L", "jpg", True),
    ("RGB", "jpg", False), ("CMYK", "jpg", False), ("RGB", "webp", False), ("RGB", "bmp", False), ("P", "gif", False),
    ("CMYK", "tif", False), ("L", "tif", True), ("1", "tif", True), ("P", "tif", False), ("RGB", "ppm", False),
    pytest.param("RGB", "avif", False, marks=pytest.mark.skipif(not AVIF, reason="Pillow without AVIF"))])
def test_opaque_pictures_are_what_pillow_reads(tmp_path: Path, mode: str, suffix: str, gray: bool) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(13, 17, 3)).convert(mode).save(path)
    picture = read_picture(path)
    expected = np.asarray(Image.open(path).convert("L" if gray else "RGB"))
    assert picture.alpha is None and picture.is_gray == gray and picture.format == suffix
    assert picture.color.dtype == np.uint8 and np.array_equal(picture.color.squeeze(), expected)


@pytest.mark.parametrize("mode, suffix", [("RGBA", "png"), ("LA", "png"), ("RGBA", "tif"), ("RGBA", "webp"),
                                          ("PA", "png"), ("LA", "tif")])
def test_transparent_pictures_are_what_pillow_reads_where_they_show(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = noise(13, 17, 4)
    pixels[:4, :4, 3] = 0
    picture = Image.fromarray(pixels)
    picture = picture.convert("LA" if mode == "LA" else "RGBA")
    (picture.quantize(64) if mode == "PA" else picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    expected = np.asarray(Image.open(path).convert("RGBA"))
    found = read_picture(path)
    assert found.is_gray == (mode == "LA") and np.array_equal(found.alpha, expected[:, :, 3])
    shown = found.alpha > 0
    colors = np.broadcast_to(found.color, (13, 17, 3))
    assert np.array_equal(colors[shown], expected[:, :, :3][shown])


def test_opaque_alpha_stays_and_palettes_of_grays_are_gray(tmp_path: Path) -> None:
    Image.fromarray(np.dstack((noise(5, 5, 3), np.full((5, 5), 255, np.uint8)))).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png").alpha == 255).all()
    Image.fromarray(noise(5, 5)).quantize(8).save(tmp_path / "b.gif")
    assert read_picture(tmp_path / "b.gif").is_gray


def test_tones_named_transparent_become_alpha(tmp_path: Path) -> None:
    gray = Image.fromarray(np.array([[1, 2], [3, 1]], np.uint8))
    gray.save(tmp_path / "a.png", transparency=1)
    assert read_picture(tmp_path / "a.png").alpha.tolist() == [[0, 255], [255, 0]]
    deep = np.array([[[1, 2, 3], [300, 400, 500]]])
    (tmp_path / "b.png").write_bytes(png(2, 1, 16, 2, deep, tRNS=struct.pack(">HHH", 1, 2, 3)))
    picture = read_picture(tmp_path / "b.png")
    assert picture.alpha.tolist() == [[0, 65535]] and picture.color[0, 1].tolist() == [300, 400, 500]


@pytest.mark.parametrize("top", [255, 65535])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_a_matter_of_the_header(tmp_path: Path, channels: int, top: int) -> None:
    pixels = noise(7, 9, channels, dtype=np.uint16, top=top)
    pixels[:, :, -1] |= 1  # no hidden colours
    (tmp_path / "a.png").write_bytes(png(9, 7, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], pixels))
    tifffile.imwrite(tmp_path / "a.tif", pixels.squeeze(), photometric="rgb" if channels > 2 else "minisblack",
                     planarconfig="contig", compression="lzw",
                     extrasamples=["unassalpha"] if channels in (2, 4) else None)
    for name in ("a.png", "a.tif"):
        picture = read_picture(tmp_path / name)
        found = picture.color if picture.alpha is None else np.dstack((picture.color, picture.alpha))
        assert found.dtype == np.uint16 and np.array_equal(found, pixels), name
        assert picture.is_gray == (channels < 3)


def test_other_tiff_kinds(tmp_path: Path) -> None:
    planes = noise(3, 7, 9, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_picture(tmp_path / "planes.tif").color, planes.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "big.tif", planes[0], photometric="miniswhite", bigtiff=True, tile=(16, 16))
    assert np.array_equal(read_picture(tmp_path / "big.tif").color[:, :, 0], 65535 - planes[0])
    values = RNG.random((7, 9, 3), dtype=np.float32)
    tifffile.imwrite(tmp_path / "float.tif", values, photometric="rgb")
    assert np.array_equal(read_picture(tmp_path / "float.tif").color, (values * 65535).round().astype(np.uint16))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_reset(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, picture = tmp_path / f"a.{suffix}", Image.fromarray(noise(5, 8, 3))
    exif = picture.getexif()
    exif[274], exif[271] = orientation, "maker"
    picture.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    found, upright = read_picture(path), Image.Exif()
    assert np.array_equal(found.color, np.asarray(ImageOps.exif_transpose(Image.open(path))))
    upright.load(found.metadata.exif)
    assert upright.get(274, 1) == 1 and upright[271] == "maker"


@pytest.mark.parametrize("photometric, channels", [("minisblack", 1), ("palette", 1), ("rgb", 3), ("rgb", 4),
                                                   ("separated", 4)])
def test_a_turned_tiff_is_the_upright_one_turned(tmp_path: Path, photometric: str, channels: int) -> None:
    """In one strip and not compressed, as Pillow maps it into memory."""
    pixels = noise(5, 9, channels).clip(1).squeeze()
    options = {"photometric": photometric, "metadata": None}
    if photometric == "palette":
        options["colormap"] = noise(3, 256, dtype=np.uint16)
    elif photometric == "rgb" and channels == 4:
        options["extrasamples"] = ["unassalpha"]
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    tifffile.imwrite(tmp_path / "b.tif", pixels, **options, extratags=[(274, "H", 1, 6, True)])
    upright, turned = (read_picture(tmp_path / name) for name in ("a.tif", "b.tif"))
    assert np.array_equal(turned.color, np.rot90(upright.color, -1))
    assert channels < 4 or photometric != "rgb" or np.array_equal(turned.alpha, np.rot90(upright.alpha, -1))


def test_orientation_of_16_bit_files_and_in_xmp(tmp_path: Path) -> None:
    pixels = noise(5, 8, 3, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(read_picture(tmp_path / "a.tif").color, np.rot90(pixels, -1))
    Image.fromarray(noise(5, 8, 3)).save(tmp_path / "b.jpg", xmp=XMP)
    picture = read_picture(tmp_path / "b.jpg")
    assert picture.color.shape == (8, 5, 3) and picture.metadata.xmp == XMP.replace(b'"6"', b'"1"')


def exif_that_says(orientation: int, more: bytes = b"") -> bytes:
    fields = Image.Exif()
    fields[274], fields[270] = orientation, more
    return fields.tobytes().removeprefix(b"Exif\0\0")


DEEP_TURNED = {
    "XMP of a TIFF": lambda path, pixels: tifffile.imwrite(
        path.with_suffix(".tif"), pixels, photometric="rgb", extratags=[(700, 1, len(XMP), XMP, True)]),
    "both of a TIFF": lambda path, pixels: tifffile.imwrite(
        path.with_suffix(".tif"), pixels, photometric="rgb",
        extratags=[(274, 3, 1, 6, True), (700, 1, len(XMP), XMP, True)]),
    "XMP of a PNG": lambda path, pixels: path.with_suffix(".png").write_bytes(
        png(8, 5, 16, 2, pixels, iTXt=b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "ImageMagick's text": lambda path, pixels: path.with_suffix(".png").write_bytes(
        png(8, 5, 16, 2, pixels, zTXt=b"Raw profile type exif\0\0" + zlib.compress(
            b"\nexif\n%d\n" % len(exif_that_says(6)) + exif_that_says(6).hex().encode()))),
    "an EXIF block that is left out": lambda path, pixels: path.with_suffix(".png").write_bytes(
        png(8, 5, 16, 2, pixels, eXIf=exif_that_says(6, b"x" * 2 ** 21))),
    "one of 8 bits": lambda path, pixels: Image.fromarray((pixels >> 8).astype(np.uint8)).save(
        path.with_suffix(".png"), exif=exif_that_says(6, b"x" * 2 ** 21))}


@pytest.mark.parametrize("source", DEEP_TURNED)
def test_a_picture_is_turned_whatever_says_how_it_lies(tmp_path: Path, source: str) -> None:
    pixels = noise(5, 8, 3, dtype=np.uint16)
    DEEP_TURNED[source](tmp_path / "a", pixels)
    path = next(tmp_path.iterdir())
    picture, header = read_picture(path), read_header(path)
    depth = 16 - picture.color.itemsize * 8
    assert np.array_equal(picture.color, np.rot90(pixels >> depth, -1))
    assert (header.height, header.width) == (8, 5)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("name, data", [
    (b"eXIf", exif_that_says(6)), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    (b"tEXt", b"Raw profile type exif\0\nexif\n%d\n%s" % (len(exif_that_says(6)), exif_that_says(6).hex().encode()))])
def test_what_a_png_says_behind_its_pixels_counts(tmp_path: Path, depth: int, name: bytes, data: bytes) -> None:
    pixels = noise(5, 8, 3, dtype=np.uint8 if depth == 8 else np.uint16)
    whole, path = png(8, 5, depth, 2, pixels), tmp_path / "a.png"
    path.write_bytes(whole[:-12] + png_chunk(name, data) + whole[-12:])
    picture, header = read_picture(path), read_header(path)
    assert np.array_equal(picture.color, np.rot90(pixels, -1)) and (header.height, header.width) == (8, 5)
    assert bool(picture.metadata.exif) == (b"exif" in data or name == b"eXIf")
    assert (picture.metadata.xmp == XMP.replace(b'"6"', b'"1"')) == (name == b"iTXt")


def turned_jxl(pixels: np.ndarray, orientation: int) -> bytes:
    """A lossless JPEG XL file of small sides, by a header (ISO/IEC 18181-1, D.3) that says how the picture lies, in a
    container whose EXIF block says so too, as those that are made of JPEG files have it."""
    import imagecodecs
    plain = imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=False)
    bits = np.unpackbits(np.frombuffer(plain, np.uint8), bitorder="little").tolist()
    sides, fields, end = bits[:31], bits[32:40], bits[40:48]  # with its padding
    said = [1, *(orientation - 1 >> i & 1 for i in range(3)), 0, 0, 0]  # no other extra fields, plain tone mapping
    head = np.packbits([*sides, *said, *fields, 1, *end], bitorder="little")

    def box(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(data), name) + data
    return (box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ")
            + box(b"Exif", bytes(4) + exif_that_says(orientation)) + box(b"jxlc", head.tobytes() + plain[6:]))


@pytest.mark.skipif(importlib.util.find_spec("pillow_jxl") is None, reason="pillow-jxl-plugin is not installed")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_xl_is_turned_once(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((40, 24, 3), np.uint8)
    pixels[:8, :, 0], pixels[:, :4, 1] = 255, 200
    (tmp_path / "a.jxl").write_bytes(turned_jxl(pixels, orientation))
    picture, header = read_picture(tmp_path / "a.jxl"), read_header(tmp_path / "a.jxl")
    upright = np.rot90(pixels, {1: 0, 3: 2, 6: -1}[orientation])
    assert np.array_equal(picture.color, upright) and (header.height, header.width) == upright.shape[:2]


@pytest.mark.skipif(importlib.util.find_spec("pillow_jxl") is None, reason="pillow-jxl-plugin is not installed")
def test_a_jpeg_within_a_jpeg_xl_is_turned_once(tmp_path: Path) -> None:
    import imagecodecs
    buffer = io.BytesIO()
    Image.fromarray(noise(16, 24, 3)).save(buffer, "JPEG", exif=b"Exif\0\0" + exif_that_says(6))
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode_jpeg(buffer.getvalue()))
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    expected, picture = read_picture(tmp_path / "a.jpg"), read_picture(tmp_path / "a.jxl")
    header = read_header(tmp_path / "a.jxl")
    assert np.array_equal(picture.color, expected.color) and (header.height, header.width) == (24, 16)


def test_frames_of_a_deep_animation_differ(tmp_path: Path) -> None:
    frames = [noise(4, 6, 3, dtype=np.uint16), noise(4, 6, 3, dtype=np.uint16)]
    rows = [zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in frame)) for frame in frames]

    def control(number: int) -> tuple[bytes, bytes]:
        return b"fcTL", struct.pack(">IIIIIHHBB", number, 6, 4, 0, 0, 1, 10, 0, 0)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)), (b"acTL", struct.pack(">II", 2, 0)), control(0),
             (b"IDAT", rows[0]), control(1), (b"fdAT", struct.pack(">I", 2) + rows[1]), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in parts))
    assert read_header(tmp_path / "a.png").frames == 2
    for number, frame in enumerate(frames):
        assert np.array_equal(read_picture(tmp_path / "a.png", frame=number).color, frame >> 8)


def adobe_to_srgb(values: np.ndarray) -> np.ndarray:
    """Adobe RGB in [0, 1] as sRGB, by the published matrices (D50) and curves."""
    adobe = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = values ** 2.19921875 @ adobe.T @ np.linalg.inv(srgb).T
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("dtype, tolerance", [(np.uint8, 1), (np.uint16, 330)])
def test_profiles_are_converted_to_srgb(tmp_path: Path, dtype: type, tolerance: int) -> None:
    top, icc = np.iinfo(dtype).max, color_profile()
    pixels = noise(20, 20, 3, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", iccprofile=icc)
    picture = read_picture(tmp_path / "a.tif")
    difference = np.abs(picture.color - adobe_to_srgb(pixels / top) * top)
    assert difference.max() <= tolerance and picture.metadata.icc == icc and picture.color.dtype == dtype


def test_gray_profiles_are_converted_and_srgb_profiles_are_not(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=color_profile("GRAY", 1.0))
    linear = ramp / 255
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    picture = read_picture(tmp_path / "a.png")
    assert picture.is_gray and np.abs(picture.color[:, :, 0] - expected).max() <= 1
    pixels, icc = noise(9, 9, 3), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "b.png", icc_profile=icc)
    picture = read_picture(tmp_path / "b.png")
    assert np.array_equal(picture.color, pixels) and picture.metadata.icc == icc


@pytest.mark.skipif(not HEIF, reason="pillow-heif is not installed")
def test_gray_that_is_decoded_as_rgb_keeps_its_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pillow_heif gives gray with alpha as RGBA."""
    register_plugins()
    tones = np.tile(np.arange(60, 188, 2, dtype=np.uint8), (64, 1))
    gray = Image.merge("LA", (Image.fromarray(tones), Image.fromarray(np.ascontiguousarray(tones.T))))
    gray.save(tmp_path / "a.heic", icc_profile=color_profile("GRAY", 1.0), quality=100)
    picture = read_picture(tmp_path / "a.heic")
    expected = 255 * (1.055 * (tones / 255) ** (1 / 2.4) - 0.055)
    assert picture.is_gray and picture.metadata.icc == color_profile("GRAY", 1.0) and not caplog.text
    assert np.abs(picture.color[:, :, 0] - expected).mean() < 2
    assert np.abs(picture.alpha.astype(int) - tones.T).max() < 9
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "b.heic", icc_profile=color_profile("GRAY", 1.0))
    assert not read_picture(tmp_path / "b.heic").is_gray and "colour profile is left out" in caplog.text


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    black = vips().Image.black(1, 1, bands=3).copy(interpretation="srgb").icc_import(input_profile="srgb")
    icc = bytes(black.icc_export(output_profile="cmyk").get("icc-profile-data"))
    ink = Image.fromarray(noise(9, 9, 4), "CMYK")
    ink.save(tmp_path / "a.tif", icc_profile=icc)
    expected = ImageCms.profileToProfile(ink, io.BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB",
                                         renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                                         flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
    picture = read_picture(tmp_path / "a.tif")
    assert np.abs(picture.color.astype(int) - np.asarray(expected)).max() <= 2 and picture.metadata.icc is None


@pytest.mark.parametrize("icc", [b"nonsense", color_profile("GRAY")])
def test_unusable_profiles_are_dropped_with_a_warning(tmp_path: Path, icc: bytes,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    pixels = noise(9, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=icc)
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.color, pixels) and picture.metadata.icc is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "a.png" in caplog.text


def scanner_profile(space: str) -> bytes:
    """An ICC v2 profile with one table (ICC.1:2001-04, 6.5.7), from "RGB " or "GRAY" to Lab: none leads back."""
    channels = 3 if space == "RGB " else 1
    table = b"mft2\0\0\0\0" + bytes((channels, 3, 2, 0)) + icc_number(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += struct.pack(">HH", 2, 2) + struct.pack(">HH", 0, 65535) * channels
    for corner in itertools.product((0, 1), repeat=channels):
        red, green, blue = corner * (3 // channels)
        lab = 100 * sum(corner) / channels, 40 * (red - green), 40 * (green - blue)
        table += struct.pack(">HHH", round(lab[0] * 652.8), *(round((value + 128) * 256) for value in lab[1:]))
    table += struct.pack(">HH", 0, 65535) * 3
    return icc_file({b"A2B0": table}, b"scnr", space, b"Lab ")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("space, photometric", [("RGB ", "rgb"), ("GRAY", "minisblack")])
def test_profiles_for_reading_alone_end_with_it(tmp_path: Path, space: str, photometric: str, dtype: type,
                                                caplog: pytest.LogCaptureFixture) -> None:
    top, icc = np.iinfo(dtype).max, scanner_profile(space)
    level = np.arange(20, 240, 20) / 255  # of gray, which the table makes lightness
    pixels = np.rint(level * top).astype(dtype)[None]
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([pixels] * 3) if space == "RGB " else pixels,
                     photometric=photometric, iccprofile=icc)
    picture = read_picture(tmp_path / "a.tif")
    light = np.where(level > 0.08, ((level * 100 + 16) / 116) ** 3, level * 100 / 903.3)
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(picture.color[0] / top - expected[:, None]).max() < 0.01
    assert picture.metadata.icc is None and "output intent" not in caplog.text  # libvips' own words
    assert [record.message for record in caplog.records if record.name.startswith("pictures")] == [
        f"{tmp_path / 'a.tif'}: the colour profile is left out: no colours can be converted to it, results are sRGB"]
    result = ResultFile(tmp_path / "b.png", picture, picture.height, picture.width)
    result.write_rows(0, picture.region(0, 0, picture.height, picture.width))
    result.finish()
    assert np.array_equal(read_picture(tmp_path / "b.png").color, picture.color)


def test_libvips_calls_python_for_warnings_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A Ctrl-C that comes while C calls Python is lost; libvips speaks of every thread pool otherwise."""
    png = vips().Image.black(500, 500, bands=3).write_to_buffer(".png")
    caplog.set_level(0, "pyvips")
    assert vips().Image.new_from_buffer(png, "").avg() == 0
    assert not [record for record in caplog.records if record.message.startswith("VIPS:")]
    vips().Image.new_from_buffer(png[:len(png) // 2], "", fail_on="none").avg()
    assert [record for record in caplog.records if record.message.startswith("VIPS:")]


def test_damaged_exif_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own
        assert read_picture(tmp_path / "a.png").metadata.exif is None
    assert "a.png" in caplog.text


def test_frames_and_pages(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(6, 7, 3)) for _ in range(3)]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert read_header(tmp_path / name).frames == 3
        with Image.open(tmp_path / name) as file:
            file.seek(2)
            expected = np.asarray(file.convert("RGB"))
        assert np.array_equal(read_picture(tmp_path / name, frame=2).color, expected), name
        with pytest.raises(ImageError, match="no frame 3"):
            read_picture(tmp_path / name, frame=3)
    pages = noise(3, 6, 7, 2, dtype=np.uint16) | 1
    tifffile.imwrite(tmp_path / "b.tif", pages, photometric="minisblack", extrasamples=["unassalpha"],
                     planarconfig="contig")
    assert read_header(tmp_path / "b.tif").frames == 3
    assert np.array_equal(read_picture(tmp_path / "b.tif", frame=1).color, pages[1, :, :, :1])


def test_thumbnails_are_no_pages(tmp_path: Path) -> None:
    pixels = noise(32, 32, 3, dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(pixels, photometric="rgb")
    assert read_header(tmp_path / "a.tif").frames == 1
    assert np.array_equal(read_picture(tmp_path / "a.tif").color, pixels)
    picture = Image.fromarray(noise(32, 32, 3))
    picture.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[picture])
    assert read_header(tmp_path / "b.jpg").frames == 1 and read_picture(tmp_path / "b.jpg").format == "jpg"


@pytest.mark.parametrize("subfile, inner, tags", [(1, 1, []), (1, 0, [(50706, "B", 4, (1, 4, 0, 0), True)]),
                                                  (0, 0, [(50706, "B", 4, (1, 4, 0, 0), True)])])
def test_raw_photographs_are_refused(tmp_path: Path, subfile: int, inner: int, tags: list) -> None:
    with tifffile.TiffWriter(tmp_path / "a.nef") as file:
        file.write(noise(4, 6, 3), photometric="rgb", subfiletype=subfile, subifds=inner, extratags=tags)
        if inner:
            file.write(noise(8, 12, dtype=np.uint16), photometric="minisblack")
    for read in (read_header, read_picture):
        with pytest.raises(ImageError, match=r"a\.nef: .* a raw photograph, .*: develop it"):
            read(tmp_path / "a.nef")


def test_a_pyramid_is_its_first_picture(tmp_path: Path) -> None:
    pixels = noise(8, 12, 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, photometric="rgb", subifds=1)
        file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
    assert read_header(tmp_path / "a.tif").frames == 1
    assert np.array_equal(read_picture(tmp_path / "a.tif").color, pixels)


def test_regions_are_tensors(tmp_path: Path) -> None:
    gray, deep = noise(9, 11), noise(9, 11, 3, dtype=np.uint16)
    Image.fromarray(gray).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", deep, photometric="rgb")
    region = read_picture(tmp_path / "a.png").region(2, 3, 4, 5)
    np.testing.assert_allclose(region.numpy(), np.broadcast_to(gray[2:6, 3:8] / 255, (3, 4, 5)), atol=1e-6)
    region = read_picture(tmp_path / "b.tif").region(0, 0, 9, 11)
    np.testing.assert_allclose(region.permute(1, 2, 0).numpy(), deep / 65535, atol=1e-6)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes(tmp_path: Path, height: int, width: int) -> None:
    pixels = noise(height, width, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png").alpha, pixels[:, :, 3])


def test_bad_files_are_told_in_one_line(tmp_path: Path) -> None:
    whole = Image.fromarray(noise(200, 200, 3))
    deep = noise(200, 200, 3, dtype=np.uint16)
    whole.save(tmp_path / "whole.jpg")
    whole.save(tmp_path / "whole.png")
    whole.save(tmp_path / "whole.tif", compression="tiff_deflate")
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    (tmp_path / "deep.png").write_bytes(png(200, 200, 16, 2, deep))
    bad = {"cut_" + name: (tmp_path / name).read_bytes()[:3000]
           for name in ("whole.jpg", "whole.png", "whole.tif", "deep.tif", "deep.png")}
    bad |= {"text.png": b"hello", "empty.png": b"", "zero.png": png(0, 5, 8, 2, np.zeros((5, 0))),
            "huge.png": png(60_000, 60_000, 8, 2, np.zeros((0, 0)))}
    reasons = {"text.png": "not a picture", "empty.png": "empty", "huge.png": "too many pixels.*--max_pixels"}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with warnings.catch_warnings(), pytest.raises(ImageError, match=reasons.get(name, name)) as error:
            warnings.simplefilter("ignore")  # Pillow's own
            read_picture(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value), name
    for path, reason in ((tmp_path / "missing.png", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ImageError, match=reason):
            read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp", *(s[1:] for s in AVIF)])
def test_any_damage_is_an_image_error(tmp_path: Path, suffix: str) -> None:
    """Flipped and missing bytes give a picture or ImageError, nothing else."""
    random, path = np.random.default_rng(0), tmp_path / f"a.{suffix}"
    frames = [Image.fromarray(noise(20, 30, 3)) for _ in range(2)]
    several = {"save_all": True, "append_images": frames[1:]} if suffix in ("gif", "tif", "webp") else {}
    frames[0].save(path, exif=frames[0].getexif().tobytes(), **several)
    whole = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own
        for attempt in range(40):
            data = bytearray(whole[:random.integers(1, len(whole))] if attempt % 4 == 0 else whole)
            for place in random.integers(0, min(len(data), 400), 4):
                data[place] = random.integers(0, 256)
            path.write_bytes(data)
            try:
                read_header(path)
                read_picture(path, max_pixels=10 ** 7)
            except ImageError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.tif", "odd.tif"])
def test_the_limit_holds_before_anything_is_decoded(tmp_path: Path, name: str) -> None:
    pixels = noise(10, 10, 2 if name == "odd.tif" else 3, dtype=np.uint8 if name == "a.png" else np.uint16)
    if name.endswith("tif"):
        tifffile.imwrite(tmp_path / name, pixels, photometric="minisblack" if name == "odd.tif" else "rgb",
                         planarconfig="contig", extrasamples=["unassalpha"] if name == "odd.tif" else None)
    else:
        (tmp_path / name).write_bytes(png(10, 10, 8 * pixels.itemsize, 2, pixels))
    read_picture(tmp_path / name, max_pixels=100)
    with pytest.raises(ImageError, match="10x10; the limit is 99"):
        read_picture(tmp_path / name, max_pixels=99)


def test_pillows_own_limit_is_off_only_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pixels = noise(10, 10, 3)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="deflate")
    assert np.array_equal(read_picture(tmp_path / "a.tif").color, pixels) and Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user without all rights")
def test_no_permission(tmp_path: Path) -> None:
    Image.fromarray(noise(2, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ImageError, match="no permission"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("package, suffix", [("pillow_heif", "heic"), ("pillow_jxl", "jxl")])
def test_formats_of_plugins(tmp_path: Path, package: str, suffix: str) -> None:
    pytest.importorskip(package)
    from pictures.formats import SUFFIXES
    register_plugins()
    smooth = np.dstack((*np.meshgrid(np.arange(0, 128, 2), np.arange(0, 128, 2)), np.full((64, 64), 90)))
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / f"a.{suffix}", quality=95)
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert f".{suffix}" in SUFFIXES and picture.format == suffix
    assert np.abs(picture.color - smooth).mean() < 2
