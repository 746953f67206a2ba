"""What a picture file may make its readers do: only kinds that we read are opened, sizes count before anything is
decoded, metadata cost no more than they are long."""
from __future__ import annotations

import io
import logging
import struct
import subprocess
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import jpeg_segment, noise_picture, png_chunk
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataloader.entries import Entry, find_entries, read_entry
from pictures import exif as exif_block
from pictures.exif import MAX_BLOCK, Harmful, directories, require_harmless_block, with_settings, without_announcements
from pictures.formats import JPEG_XL, ImageError, early_size, gif_layout, require_harmless, tiff_pages
from pictures.picture import read_header, read_picture, software_of
from pictures.result_file import ResultFile
from pictures.rgb import read_image
from tests.security import fuzz_seeds

SIDE = 24
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n(%pipe%touch run) (w) file\nshowpage\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="/etc/passwd"/></svg>'


def noise(height: int = SIDE, width: int = SIDE) -> Image.Image:
    """Pixels that do not compress well, others for every size."""
    return noise_picture(height, width, seed=height * width)


def saved(kind: str, **options: object) -> bytes:
    """A small picture as Pillow writes it."""
    return fuzz_seeds.saved(noise(), kind, **options)


def tiff_block(entries: int, length: int, first_tag: int = 40_000) -> bytes:
    """A directory whose entries all point to one and the same value, which stands behind it."""
    place = 8 + 2 + 12 * entries + 4
    rows = b"".join(struct.pack("<HHII", first_tag + i, 7, length, place) for i in range(entries))
    return b"II*\0" + struct.pack("<IH", 8, entries) + rows + bytes(4) + bytes(length)


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG file with more segments behind its start."""
    data = saved("JPEG")
    return data[:2] + b"".join(jpeg_segment(*each) for each in segments) + data[2:]


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file with more chunks behind its header."""
    data = saved("PNG")
    return data[:33] + b"".join(png_chunk(*each) for each in chunks) + data[33:]


@pytest.mark.parametrize("name, data", [
    ("eps", EPS), ("svg", SVG), ("ico", saved("ICO")), ("pcx", saved("PCX")), ("dds", saved("DDS")),
    ("icns", saved("ICNS")), ("fli", b"\0\0\0\0\x11\xaf" + bytes(122)), ("pdf", saved("PDF")), ("im", saved("IM"))])
def test_other_kinds_are_not_opened_whatever_they_are_called(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    for suffix in (".png", ".tif", ".jpg"):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(data)
        for read in (read_picture, read_header, read_image, lambda path: read_entry(Entry(path))):
            with pytest.raises(ImageError, match="not a picture in a format that can be read"):
                read(path)
        assert software_of(path) is None
    assert len(find_entries(tmp_path)) == 3 and not started


def test_what_is_no_more_than_like_a_tga_file_is_none(tmp_path: Path) -> None:
    """They have no magic number: files of other kinds would be read as noise."""
    data = saved("TGA").removesuffix(bytes(8) + b"TRUEVISION-XFILE.\0")
    for name, content, is_read in (("a.tga", data, True), ("b.png", data, False), ("c.TGA", data, True),
                                   ("d", data + bytes(8) + b"TRUEVISION-XFILE.\0", True)):
        (tmp_path / name).write_bytes(content)
        if is_read:
            assert np.array_equal(read_picture(tmp_path / name).color, np.asarray(noise())), name
        else:
            with pytest.raises(ImageError, match="not a picture"):
                read_picture(tmp_path / name)


@pytest.mark.skipif(not JPEG_XL, reason="pillow-jxl-plugin is not installed")
@pytest.mark.parametrize("size", [(8, 8), (256, 256), (100, 75), (75, 100), (300, 200), (1, 1), (513, 9), (9000, 5)])
@pytest.mark.parametrize("container", [False, True])
def test_sides_of_jpeg_xl_are_known_without_decoding(tmp_path: Path, size: tuple[int, int], container: bool) -> None:
    import pillow_jxl  # noqa: F401 - registers itself
    path = tmp_path / "a.jxl"
    Image.new("RGB", size, "teal").save(path, use_container=container)
    with Image.open(path) as file:
        assert early_size(path) == file.size == size
    assert early_size(Path(__file__)) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sides_of_a_turned_jpeg_xl(tmp_path: Path, orientation: int) -> None:
    """By hand (ISO/IEC 18181-1, 9.2): a small picture of 40x24 whose header says how it lies."""
    bits = [(1, 1), (24 // 8 - 1, 5), (0, 3), (40 // 8 - 1, 5), (0, 1), (1, 1), (orientation - 1, 3)]
    value, place = 0, 0
    for number, count in bits:
        value, place = value | number << place, place + count
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + value.to_bytes(16, "little"))
    assert early_size(tmp_path / "a.jxl") == ((24, 40) if orientation >= 5 else (40, 24))


@pytest.mark.skipif(not JPEG_XL, reason="pillow-jxl-plugin is not installed")
def test_a_large_jpeg_xl_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pillow_jxl
    path = tmp_path / "a.jxl"
    Image.new("RGB", (1200, 900)).save(path)
    monkeypatch.setattr(pillow_jxl.JpegXLImagePlugin, "Decoder", lambda **_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="too many pixels .1200x900; the limit is 1000000"):
        read_picture(path, 10 ** 6)
    header = read_header(path)
    assert (header.width, header.height, header.frames, header.kind) == (1200, 900, 1, "jxl")
    assert software_of(path) is None


def test_pillow_has_our_limit_while_a_file_is_open(tmp_path: Path) -> None:
    before, allowed = Image.MAX_IMAGE_PIXELS, []
    noise().save(tmp_path / "a.png")
    with pytest.MonkeyPatch.context() as patch:
        opened = Image.open
        patch.setattr(Image, "open", lambda *args, **options: allowed.append(Image.MAX_IMAGE_PIXELS) or opened(
            *args, **options))
        read_picture(tmp_path / "a.png", 12_345)
    assert allowed == [12_345] and before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("frame", [1, 2])
def test_gif_frames_beyond_the_screen_count(tmp_path: Path, frame: int) -> None:
    """Pillow enlarges its canvas to them, some of them as it opens a file."""
    noise().convert("P").save(tmp_path / "a.gif", save_all=True, append_images=[noise(SIDE, 30).convert("P")])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    place = -1
    for _ in range(frame):
        place = data.index(struct.pack("<BHHHH", 0x2C, 0, 0, SIDE, SIDE), place + 1)
    struct.pack_into("<HH", data, place + 5, 60_000, 60_000)
    (tmp_path / "a.gif").write_bytes(data)
    for read in (read_picture, read_header):
        with pytest.raises(ImageError, match="too many pixels .60000x60000; the limit is .*--max_pixels"):
            read(tmp_path / "a.gif")


def test_values_that_lie_over_each_other() -> None:
    with pytest.raises(Harmful, match="over each other"):
        require_harmless_block(tiff_block(700, 10_000))
    require_harmless_block(tiff_block(1, 10_000))
    require_harmless_block(b"nothing of the kind")
    doubled = struct.pack("<HHII", 40_000, 7, 9000, 8 + 2 + 24 + 4)  # one tag again and again is read again and again
    with pytest.raises(Harmful):
        require_harmless_block(b"II*\0" + struct.pack("<IH", 8, 2) + doubled * 2 + bytes(4) + bytes(9000))


@given(st.binary(max_size=200), st.sampled_from([b"II*\0" + struct.pack("<I", 8), b"MM\0*" + struct.pack(">I", 8),
                                                 b"II+\0" + struct.pack("<HHQ", 8, 0, 16)]))
def test_directories_of_anything_end(data: bytes, head: bytes) -> None:
    with suppress(*exif_block.DAMAGED):
        assert all(len(entry) in (12, 20) for raw, _ in directories(io.BytesIO(head + data)) for entry in raw.values())


@pytest.mark.parametrize("kind", ["tif", "jpg", "index", "png", "webp", "avif"])
def test_harmful_blocks_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Refused where the library would read them as it opens the file, else left out; never read."""
    block = tiff_block(2000, 30_000)
    data = {"tif": block, "jpg": jpeg_with((0xE1, b"Exif\0\0" + block)), "index": jpeg_with((0xE2, b"MPF\0" + block)),
            "png": png_with((b"eXIf", block)), "webp": saved("WEBP", exif=block),
            "avif": saved("AVIF") + struct.pack(">I4s", 8 + len(block), b"free") + block}[kind]
    path = tmp_path / f"a.{'jpg' if kind == 'index' else kind}"
    path.write_bytes(data)
    if kind in ("png", "webp"):
        assert read_picture(path).metadata.exif is None and "over each other" in caplog.text
    else:
        with pytest.raises(ImageError, match="is not opened: values that lie over each other"):
            read_picture(path)


def test_headers_of_exif_without_end(tmp_path: Path) -> None:
    """Pillow takes them off one by one, which takes a time that grows with the square of their number."""
    path = tmp_path / "a.png"
    path.write_bytes(png_with((b"eXIf", b"Exif\0\0" * 150_000)))
    assert read_picture(path).metadata.exif is None
    pieces = [b"Exif\0\0" * 10_000] * 20
    path.write_bytes(jpeg_with(*((0xE1, piece) for piece in pieces)))
    with pytest.raises(ImageError, match="begins again and again"):
        read_picture(path)


@pytest.mark.parametrize("options, what", [({"exif": b"Exif\0\0" + exif_block.EMPTY + bytes(MAX_BLOCK)}, "EXIF data"),
                                           ({"xmp": b"<x/>" + b" " * MAX_BLOCK}, "XMP"),
                                           ({"icc_profile": bytes(5 * MAX_BLOCK)}, "colour profile")])
def test_long_blocks_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict,
                                                 what: str) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(saved("WEBP", lossless=True, **options))
    picture = read_picture(path)
    assert (picture.metadata.exif, picture.metadata.xmp, picture.metadata.icc) == (None, None, None)
    assert np.array_equal(picture.color, np.asarray(noise()))
    assert what in caplog.text and "bytes are too many" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize("pixels, unit", [(4 * 10 ** 9, 2), (10 ** 8, 3), (1, 2)])
def test_resolutions_that_nobody_means_are_left_out(tmp_path: Path, pixels: int, unit: int) -> None:
    """A result of any kind can be written."""
    fields = struct.pack("<HHHIIHHIIHHII", 3, 282, 5, 1, 50, 283, 5, 1, 50, 296, 3, 1, unit)
    value = struct.pack("<II", pixels, 1 if pixels > 1 else 10 ** 6)
    block = b"II*\0" + struct.pack("<I", 8) + fields + bytes(4) + value
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", exif=b"Exif\0\0" + block))
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.metadata.exif is not None and picture.metadata.resolution is None
    for suffix in (".png", ".jpg", ".tif", ".webp", ".bmp"):
        result = ResultFile(tmp_path / f"result{suffix}", picture, picture.height, picture.width)
        result.finish()
        assert read_header(result.path).width == SIDE


def test_comments_of_a_jpeg_file_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_with(*((0xFE, b"c" * 60_000) for _ in range(20))))
    assert read_picture(tmp_path / "a.jpg").metadata.comments == () and "comments" in caplog.text
    (tmp_path / "b.jpg").write_bytes(jpeg_with((0xFE, b"one"), (0xFE, b"two")))
    assert read_picture(tmp_path / "b.jpg").metadata.comments == (b"one", b"two")


def test_a_long_field_of_a_tiff_file_is_left_out(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.asarray(noise()), photometric="rgb", metadata=None,
                     extratags=[(315, 2, 0, "x" * (MAX_BLOCK + 1), True), (33432, 2, 0, "somebody", True)])
    block = read_picture(tmp_path / "a.tif").metadata.exif
    assert exif_block.text_of(block, exif_block.COPYRIGHT) == "somebody" and len(block) < 1000


@pytest.mark.parametrize("tile, samples, message", [((20_000, 20_000), 1, "tiles of 20000 pixels"),
                                                    ((16, 60_000), 1, "tiles of 60000 pixels"),
                                                    ((16, 16), 60_000, "60000 channels")])
def test_tiles_and_channels_beyond_all_use(tmp_path: Path, tile: tuple[int, int], samples: int, message: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), tile=(16, 16))
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        for tag, value in (("TileLength", tile[0]), ("TileWidth", tile[1]), ("SamplesPerPixel", samples)):
            tags[tag].overwrite(value)
    with pytest.raises(ImageError, match=message):
        read_picture(path)


def test_usual_tiles_are_read(tmp_path: Path) -> None:
    """Larger than the picture, too, as writers of maps have them."""
    pixels = np.asarray(noise(40, 50))
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(512, 512), photometric="rgb")
    assert np.array_equal(read_picture(tmp_path / "a.tif").color, pixels)


def test_pages_are_counted_and_looked_at_up_to_the_wanted_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = np.random.default_rng(0).integers(0, 256, (5, 8, 9), np.uint8)
    with tifffile.TiffWriter(path) as writer:
        for number, page in enumerate(pages):
            writer.write(page, photometric="minisblack", metadata=None, subfiletype=number == 2)
    assert list(tiff_pages(path)) == [0, 1, 3, 4] and read_header(path).frames == 4
    assert np.array_equal(read_picture(path, frame=2).color[:, :, 0], pages[3])
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        last = file.pages[4].offset
    struct.pack_into("<H", data, last, 0xFFFF)  # the last page is damaged
    path.write_bytes(data)
    assert np.array_equal(read_picture(path, frame=2).color[:, :, 0], pages[3])
    with pytest.raises(ImageError, match="ends early"):
        read_picture(path, frame=3)


def test_more_pages_than_anyone_has(tmp_path: Path) -> None:
    fields = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    page = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", tag, 4, 1, value)
                                                     for tag, value in fields.items())
    count, size = exif_block.MAX_PAGES + 2, len(page) + 4
    pages = b"".join(page + struct.pack("<I", 8 + size * (i + 1) if i < count - 1 else 0) for i in range(count))
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + pages)
    with pytest.raises(ImageError, match="more than 10000 directories"):
        read_header(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif", frame=3).color.shape == (1, 1, 1)
    (tmp_path / "b.tif").write_bytes(b"II*\0\x08\0\0\0" + page + struct.pack("<I", 8))
    assert list(tiff_pages(tmp_path / "b.tif")) == [0] and read_header(tmp_path / "b.tif").frames == 1


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_frames_of_gif_files_are_those_of_pillow(tmp_path: Path, frames: int) -> None:
    first, *rest = (noise(SIDE, SIDE + i).resize((SIDE, SIDE)).convert("P") for i in range(frames))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, comment=b"a comment", loop=0)
    with Image.open(tmp_path / "a.gif") as file, open(tmp_path / "a.gif", "rb") as stream:
        layout = gif_layout(stream)
        assert layout.frames == file.n_frames == frames == read_header(tmp_path / "a.gif").frames
        assert (layout.width, layout.height) == file.size


def test_gif_files_of_comments_or_frames_without_end(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "GIF")
    data = buffer.getvalue()
    comment = b"!\xfe" + b"".join(b"\xff" + b"c" * 255 for _ in range(5000)) + b"\0"
    (tmp_path / "a.gif").write_bytes(data[:13 + 3 * 256] + comment + data[13 + 3 * 256:])
    frame = b",\0\0\0\0\1\0\1\0\0\2\2L\1\0"
    (tmp_path / "b.gif").write_bytes(data[:-1] + frame * 10_001 + b";")
    for name in "ab":
        with pytest.raises(ImageError, match="is not opened: more than 10000 pictures or 1048576 bytes of comments"):
            read_picture(tmp_path / f"{name}.gif")


def test_scans_without_end(tmp_path: Path) -> None:
    data = saved("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-2] + scan * 200 + data[-2:])
    with pytest.raises(ImageError, match="more than 100 scans"):
        read_picture(path)
    path.write_bytes(data)
    require_harmless(path)


def test_chunks_that_grow(tmp_path: Path) -> None:
    """Of deep files too, which libvips reads with all its limits off."""
    for name, head in ((b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")):
        path = tmp_path / "a.png"
        path.write_bytes(png_with((name, head + zlib.compress(bytes(20 * MAX_BLOCK)))))
        with pytest.raises(ImageError, match=f"{name.decode()} chunk that grows to more than"):
            read_picture(path)


def test_packets_take_a_time_that_grows_with_their_length() -> None:
    opening = b'<rdf:Description xmlns:varsr="urn:x-varsr:1.0">'
    for xmp in (b"<rdf:Description " * 60_000, opening * 20_000, (b"<rdf:Description urn:x-varsr:1.0 ") * 30_000):
        with_settings(xmp + b"</rdf:RDF>", "x")
    ours = with_settings(None, "first")
    assert b"first" not in with_settings(ours, "second")
    assert with_settings(ours, "second").count(b"urn:x-varsr") == 1


@pytest.mark.parametrize("xmp", [
    b"<a>" * 5000 + b"</a>" * 5000, b"<a/>" * 10 ** 6, b"<a>",
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'])
def test_packets_that_are_trees_without_end_are_left_out(xmp: bytes) -> None:
    assert without_announcements(xmp) is None


def test_nothing_is_warned_of_that_is_said_in_the_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(100, 100).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ImageError, match="--max_pixels"):
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # as importing the reader does
        read_picture(tmp_path / "a.png", max_pixels=9999)
    assert not caught and not [record for record in caplog.records if record.levelno >= logging.WARNING]
