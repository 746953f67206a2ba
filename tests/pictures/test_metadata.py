"""What becomes of metadata: every cell of the table in docs/files.md, looked at in the files that are written."""
from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import color_profile, jpeg_segment, png_chunk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pictures.exif import with_settings, without_announcements
from pictures.file_writer import JFIF_END
from pictures.formats import AVIF, HEIF, JPEG_XL, ImageError, register_plugins
from pictures.icc import Colors, is_srgb, made_profile, png_colors, to_srgb
from pictures.picture import read_header, read_making, read_picture, software_of
from pictures.result_file import ResultFile, ResultOptions

DOCS = Path(__file__).resolve().parents[2] / "docs" / "files.md"
KINDS = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "WebP": "webp", "BMP": "bmp", **({"AVIF": "avif"} if AVIF else {}),
         **({"HEIC": "heic"} if HEIF else {}), **({"JPEG XL": "jxl"} if JPEG_XL else {})}
TEXT = (("Software", "VARSR 1.0"), ("VARSR", "model=tiny; seed=7"))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">' \
      b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:title="a title"/></rdf:RDF>' \
      b'</x:xmpmeta>'
IPTC = b"\x1c\x02\x78\x00\x09a caption\x1c\x02\x19\x00\x07keyword"
PIXELS = np.random.default_rng(0).integers(60, 180, (8, 12, 3), dtype=np.uint8)
P3 = Colors.of_codes(12, 13)
DPI = 300


def png(path: Path, *chunks: tuple[bytes, bytes], pixels: np.ndarray = PIXELS) -> Path:
    """A PNG file with more chunks before its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    path.write_bytes(data[:33] + b"".join(png_chunk(*each) for each in chunks) + data[33:])
    return path


def jpeg(path: Path, *segments: tuple[int, bytes], **options: object) -> Path:
    """A JPEG file with more segments behind its header."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=95, **options)
    data = buffer.getvalue()
    path.write_bytes(data[:JFIF_END] + b"".join(jpeg_segment(*each) for each in segments) + data[JFIF_END:])
    return path


def exif_block() -> Image.Exif:
    fields = Image.Exif()
    fields.update({271: "maker", 0xC614: "a name that libexif does not know"})
    fields.get_ifd(0x8769).update({0x927C: b"note\1\2", 0x9286: b"ASCII\0\0\0theirs"})
    fields.get_ifd(0x8825).update({1: "N"})
    return fields


def photoshop(iptc: bytes) -> bytes:
    return b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


# A source for each row of the table, made by other libraries or by hand.
SOURCES: dict[str, Callable[[Path], Path]] = {
    "EXIF": lambda folder: jpeg(folder / "a.jpg", exif=exif_block()),
    "XMP": lambda folder: jpeg(folder / "a.jpg", xmp=XMP),
    "colour profile": lambda folder: jpeg(folder / "a.jpg", icc_profile=color_profile()),
    "resolution": lambda folder: jpeg(folder / "a.jpg", dpi=(DPI, DPI)),
    "PNG text `parameters`": lambda folder: png(folder / "a.png", (b"tEXt", b"parameters\0a castle, 20 steps")),
    "PNG text `Description`": lambda folder: png(
        folder / "a.png", (b"tEXt", b"Description\0a castle"), (b"iTXt", b"Author\0\0\0\0\0" + "Ö".encode()),
        (b"zTXt", b"Copyright\0\0" + zlib.compress(b"mine"))),
    "PNG text `Comment`": lambda folder: jpeg(folder / "a.jpg", (0xFE, b"a remark")),
    "IPTC": lambda folder: jpeg(folder / "a.jpg", (0xED, photoshop(IPTC))),
    "colours by gAMA": lambda folder: png(folder / "a.png", (b"cICP", bytes((12, 13, 0, 1)))),
    "colours by a cICP code": lambda folder: png(folder / "a.png", (b"cICP", bytes((22, 13, 0, 1)))),
}


def table() -> Iterator[tuple[str, str, str]]:
    """Row, kind and cell of the table."""
    lines = [line for line in DOCS.read_text(encoding="utf-8").partition("## What becomes of metadata")[2].splitlines()
             if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    for row in rows:
        name = next(start for start in SOURCES if row[0].startswith(start))
        yield from ((name, kind, cell) for kind, cell in zip(head[1:], row[1:], strict=True) if kind in KINDS)


def restored(source: Path, kind: str, options: ResultOptions | None = None) -> Path:
    """A source as a result of a kind, its pixels unchanged."""
    picture, path = read_picture(source), source.with_name(f"result.{kind}")
    file = ResultFile(path, picture, picture.height, picture.width, options or ResultOptions(text=TEXT))
    file.write_rows(0, picture.region(0, 0, picture.height, picture.width))
    file.finish()
    return path


def opened(path: Path) -> Image.Image:
    register_plugins()
    image = Image.open(path)
    image.load()
    return image


def comments(path: Path) -> list[bytes]:
    image = opened(path)
    if path.suffix == ".png":
        return [image.text["Comment"].encode()] if "Comment" in image.text else []
    return [data for name, data in getattr(image, "applist", ()) if name == "COM"]


def iptc(path: Path) -> bytes | None:
    image = opened(path)
    if path.suffix == ".png":
        data = bytes.fromhex("".join(image.text["Raw profile type iptc"].split()[2:]))
        return data[12:12 + struct.unpack(">I", data[8:12])[0]]
    if path.suffix == ".tif":
        return bytes(tifffile.TiffFile(path).pages[0].tags[33723].value)
    return image.info["photoshop"][0x0404]


def dots(path: Path) -> tuple[float, float] | None:
    """Pixels an inch by the container's own field, without Pillow's guesses."""
    if path.suffix == ".tif":
        tags = tifffile.TiffFile(path).pages[0].tags
        return None if tags["ResolutionUnit"].value == 1 else tuple(a / b for a, b in (
            tags["XResolution"].value, tags["YResolution"].value))
    info = opened(path).info
    if path.suffix == ".jpg":
        return None if info["jfif_unit"] == 0 else info["jfif_density"]
    return info.get("dpi") if path.suffix == ".bmp" and info["dpi"][0] or path.suffix == ".png" else None


def exif_dots(path: Path) -> float | None:
    return opened(path).getexif().get(282)


def check_exif(path: Path) -> None:
    fields = opened(path).getexif()
    assert fields[271] == "maker" and fields.get_ifd(0x8825)[1] == "N"
    details = fields.get_ifd(0x8769)
    assert details[0x927C] == b"note\1\2" and details[0x9286] == b"ASCII\0\0\0theirs"
    assert "VARSR 1.0" in fields[305]
    if path.suffix not in (".heic", ".jxl", ".tif"):  # TIFF has a list of fields, the others go through packages
        assert fields[0xC614] == "a name that libexif does not know"


def check_xmp(path: Path) -> None:
    if path.suffix == ".jxl":  # nothing here reads it
        assert b"a title" in path.read_bytes() or b"brob" in path.read_bytes()
    else:
        assert b'dc:title="a title"' in read_picture(path).metadata.xmp


def check_resolution(path: Path) -> None:
    assert dots(path) == pytest.approx((DPI, DPI), rel=1e-3)


def check_texts(path: Path) -> None:
    text = opened(path).text
    for keyword, value in (("parameters", "a castle, 20 steps"), ("Description", "a castle"), ("Author", "Ö"),
                           ("Copyright", "mine")):
        assert text.get(keyword, value) == value
    assert {"parameters", "Description"} & set(text)


def check_profile(path: Path) -> None:
    assert opened(path).info["icc_profile"] == color_profile()


KEPT: dict[str, Callable[[Path], None]] = {
    "EXIF": check_exif, "XMP": check_xmp, "colour profile": check_profile, "resolution": check_resolution,
    "PNG text `parameters`": check_texts, "PNG text `Description`": check_texts}


@pytest.mark.parametrize("row, kind, cell", list(table()))
def test_every_cell_of_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str, kind: str,
                                 cell: str) -> None:
    path = restored(SOURCES[row](tmp_path), KINDS[kind])
    assert ("have no place for" in caplog.text) == (cell == "told"), caplog.text
    if cell == "told":
        word = {"colours by a cICP code": "colours", "PNG text `parameters`": "parameters",
                "PNG text `Comment`": "comment", "PNG text `Description`": "Author"}.get(row, row)
        assert word in caplog.text and path.name in caplog.text
    elif cell == "kept" and row in KEPT:
        KEPT[row](path)
    elif cell == "kept" and row == "PNG text `Comment`":
        assert comments(path) == [b"a remark"]
    elif cell == "kept" and row == "IPTC":
        assert iptc(path).startswith(IPTC)
    elif cell == "kept":
        assert png_chunk(b"cICP", bytes((22, 13, 0, 1))) in path.read_bytes()
    elif cell == "in EXIF" and row == "resolution":
        assert exif_dots(path) == pytest.approx(DPI)
    elif cell == "in EXIF":
        fields = opened(path).getexif()
        assert fields[270] == "a castle" and fields[0x8298] == "mine" and fields[315] in ("Ö", "Ã\x96")
    elif cell == "profile":
        assert opened(path).info["icc_profile"] == made_profile(P3, 3)
    else:
        assert cell == "sRGB"
        icc = opened(path).info.get("icc_profile")  # that of JPEG XL is what its package makes up
        assert icc is None or (path.suffix == ".jxl" and is_srgb(icc))


@pytest.mark.parametrize("kind", KINDS.values())
def test_where_nothing_is_said_nothing_is_made_up(tmp_path: Path, kind: str) -> None:
    path = restored(png(tmp_path / "a.png"), kind)
    assert dots(path) is None and exif_dots(path) in (None, 1.0)
    assert read_picture(path).metadata.resolution is None


@pytest.mark.parametrize("kind", KINDS.values())
def test_stripped_results_say_nothing(tmp_path: Path, kind: str) -> None:
    texts = ((b"tEXt", b"parameters\0secret"), (b"tEXt", b"Author\0secret"),
             (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)))
    path = restored(png(tmp_path / "a.png", *texts), kind, ResultOptions(strip_metadata=True, text=TEXT))
    metadata = read_picture(path).metadata
    assert b"secret" not in path.read_bytes() and b"VARSR" not in path.read_bytes() and metadata.resolution is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sets(st.sampled_from(["exif", "xmp", "dpi", "icc"])),
       kind=st.sampled_from(["png", "jpg", "tif", "webp"]), again=st.sampled_from(["png", "jpg", "tif", "webp"]))
def test_nothing_is_lost_over_two_kinds(tmp_path_factory: pytest.TempPathFactory, rows: set[str], kind: str,
                                        again: str) -> None:
    """Whatever a file holds together, through one kind into another."""
    folder = tmp_path_factory.mktemp("kinds")
    options = {**({"exif": exif_block()} if "exif" in rows else {}), **({"dpi": (DPI, DPI)} if "dpi" in rows else {}),
               **({"icc_profile": color_profile()} if "icc" in rows else {})}
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", **options)
    more = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP) if "xmp" in rows else (b"tEXt", b"Description\0a castle")
    data = buffer.getvalue()
    (folder / "a.png").write_bytes(data[:33] + png_chunk(*more) + data[33:])
    path = restored(restored(folder / "a.png", kind).rename(folder / f"b.{kind}"), again)
    found = read_picture(path).metadata
    assert (found.icc == color_profile()) == ("icc" in rows)
    assert (found.resolution is not None) == ("dpi" in rows)
    if "dpi" in rows:
        assert found.resolution == pytest.approx((DPI / 25.4,) * 2, rel=1e-3)
    if "exif" in rows:
        check_exif(path) if kind != "tif" and again != "tif" else None
        assert opened(path).getexif().get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0theirs"
        assert again == "png" or b"seed=7" in found.xmp
    assert (b"a title" in (found.xmp or b"")) == ("xmp" in rows)
    if "xmp" not in rows and kind == again == "png":
        assert opened(path).text["Description"] == "a castle"
    assert opened(path).getexif()[305] == "VARSR 1.0" and software_of(path) == "VARSR 1.0"


# ---- ours beside theirs ----

def test_programs_are_named_one_behind_the_other(tmp_path: Path) -> None:
    source = png(tmp_path / "a.png", (b"tEXt", b"Software\0GIMP 2.10; VARSR 0.9"))
    for kind in ("png", "jpg"):
        assert software_of(restored(source, kind)) == "GIMP 2.10; VARSR 1.0"


def test_settings_go_where_there_is_room(tmp_path: Path) -> None:
    free = restored(jpeg(tmp_path / "a.jpg"), "jpg").rename(tmp_path / "d.jpg")
    assert json.loads(opened(free).getexif().get_ifd(0x8769)[0x9286][8:]) == {"VARSR": "model=tiny; seed=7"}
    assert read_picture(free).metadata.xmp is None
    taken = restored(jpeg(tmp_path / "b.jpg", exif=exif_block(), xmp=XMP), "jpg")
    twice = restored(taken.rename(tmp_path / "c.jpg"), "jpg", ResultOptions(text=(("VARSR", "again"),)))
    packet = read_picture(twice).metadata.xmp.decode()
    assert opened(twice).getexif().get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0theirs"
    assert "a title" in packet and "again" in packet and "seed=7" not in packet and read_making(twice) == "again"
    for kind in ("jpg", "tif", "webp", "png"):
        assert read_making(restored(jpeg(tmp_path / "e.jpg", exif=exif_block()), kind)) == "model=tiny; seed=7"
    assert read_making(tmp_path / "e.jpg") is None
    ours = restored(free, "jpg", ResultOptions(text=(("VARSR", "again"),)))
    assert b"again" in opened(ours).getexif().get_ifd(0x8769)[0x9286] and read_picture(ours).metadata.xmp is None


def test_xmp_without_a_place_for_more(caplog: pytest.LogCaptureFixture) -> None:
    assert with_settings(None, 'a <b> & "c"').count(b"<varsr:settings>") == 1
    with pytest.raises(ValueError, match="RDF"):
        with_settings(b"\xff\xfe<\0x\0", "settings")


def test_blocks_too_long_for_jpeg_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.replace(b"a title", b"a title" * 10_000))
    restored(png(tmp_path / "a.png", long), "jpg")
    assert "XMP is too long" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_comments_in_either_encoding_become_png_text(tmp_path: Path, encoding: str) -> None:
    path = restored(jpeg(tmp_path / "a.jpg", (0xFE, "Café über Zürich".encode(encoding))), "png")
    assert opened(path).text["Comment"] == "Café über Zürich"


def test_a_long_thumbnail_does_not_push_exif_out_of_a_jpeg(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    block = exif_block().tobytes().removeprefix(b"Exif\0\0")
    link = 10 + 12 * struct.unpack_from(">H", block, 8)[0]  # Pillow's byte order is the big one
    size = 65_520 - len(block) - 30 - 6
    directory = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, len(block) + 30, 0x0202, 4, 1, size, 0)
    whole = block[:link] + struct.pack(">I", len(block)) + block[link + 4:] + directory + b"t" * size
    check_exif(restored(jpeg(tmp_path / "a.jpg", (0xE1, b"Exif\0\0" + whole)), "jpg"))
    assert "too long" not in caplog.text


def test_texts_without_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ImageError, match="zTXt chunk that grows to more than"):
        read_picture(png(tmp_path / "a.png", (b"zTXt", b"Comment\0\0" + zlib.compress(b"0" * 50_000_000, 9))))
    path = restored(png(tmp_path / "b.png", (b"tEXt", b"parameters\0" + b"x" * 2_000_000)), "png")
    assert path.stat().st_size < 100_000 and "too long" in caplog.text


@pytest.mark.parametrize("unit, density", [(1, (300, 150)), (2, (118, 118)), (1, (96, 96))])
def test_jfif_densities_come_back(tmp_path: Path, unit: int, density: tuple[int, int]) -> None:
    source = jpeg(tmp_path / "a.jpg", dpi=(1, 1))
    data = bytearray(source.read_bytes())
    struct.pack_into(">BHH", data, 13, unit, *density)
    source.write_bytes(data)
    info = opened(restored(source, "jpg")).info
    assert (info["jfif_unit"], info["jfif_density"]) == (unit, density)


# ---- colours without a profile ----

def by_formula(primaries: tuple, values: np.ndarray, curve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Values in [0, 1] of a colour space whose white is D65 as sRGB, by its chromaticities (SMPTE RP 177)."""
    def to_xyz(points: tuple) -> np.ndarray:
        columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in points]).T
        return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
    srgb = to_xyz(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)))
    light = (curve(values) @ (np.linalg.inv(srgb) @ to_xyz(primaries)).T).clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def srgb_curve(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


P3_POINTS = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290))


@pytest.mark.parametrize("chunks, primaries, curve", [
    (((b"cICP", bytes((12, 13, 0, 1))),), P3_POINTS, srgb_curve),
    (((b"gAMA", struct.pack(">I", 55_556)),), ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)),
     lambda v: v ** 1.8),
    (((b"gAMA", struct.pack(">I", 45_455)),
      (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))), P3_POINTS,
     lambda v: v ** 2.2)])
def test_colours_are_converted_by_the_formula(tmp_path: Path, chunks: tuple, primaries: tuple,
                                              curve: Callable[[np.ndarray], np.ndarray]) -> None:
    values = np.random.default_rng(1).integers(80, 170, (16, 16, 3), dtype=np.uint8)
    found = read_picture(png(tmp_path / "a.png", *chunks, pixels=values))
    expected = by_formula(primaries, values / 255, curve) * 255
    assert np.abs(found.color - expected).max() <= 1.5
    again = opened(restored(tmp_path / "a.png", "png"))
    assert np.abs(np.asarray(again).astype(int) - values).max() <= 2  # back in its own colours, which its profile names
    assert np.abs(to_srgb(values, again.info["icc_profile"]) - expected).max() <= 1.5


def color_space(path: Path) -> int:
    return opened(path).getexif().get_ifd(0x8769)[0xA001]


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_exif_says_srgb_where_a_profile_is_used_up(tmp_path: Path, kind: str) -> None:
    fields = Image.Exif()
    fields.get_ifd(0x8769)[0xA001] = 0xFFFF
    for order in "<>":
        fields.endian = order
        Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "a.jpg", exif=fields)
        assert color_space(restored(tmp_path / "a.jpg", kind)) == 1
    Image.fromarray(PIXELS).convert("LAB").save(tmp_path / "a.tif", exif=fields)
    assert color_space(restored(tmp_path / "a.tif", kind)) == 1
    for icc in (color_profile(), color_profile("GRAY"), None):  # kept, left out with the pixels as they are, none
        assert color_space(restored(jpeg(tmp_path / "b.jpg", exif=fields, icc_profile=icc), kind)) == 0xFFFF


def test_exif_says_srgb_where_a_kind_has_no_place_for_the_profile(tmp_path: Path) -> None:
    fields = Image.Exif()
    fields.get_ifd(0x8769)[0xA001] = 0xFFFF
    gray = Image.fromarray(PIXELS[:, :, 0])
    gray.save(tmp_path / "a.jpg", exif=fields, icc_profile=color_profile("GRAY"))
    assert color_space(restored(tmp_path / "a.jpg", "webp")) == 1
    gray.save(tmp_path / "b.jpg", exif=fields)
    assert color_space(restored(tmp_path / "b.jpg", "webp")) == 0xFFFF
    if JPEG_XL:
        assert color_space(restored(jpeg(tmp_path / "c.jpg", exif=fields, icc_profile=color_profile()), "jxl")) == 1
        assert color_space(restored(jpeg(tmp_path / "d.jpg", exif=fields), "jxl")) == 0xFFFF


def test_gray_gamma(tmp_path: Path) -> None:
    ramp = np.arange(40, 240, dtype=np.uint8)[None]
    found = read_picture(png(tmp_path / "a.png", (b"gAMA", struct.pack(">I", 100_000)), pixels=ramp))
    light = ramp / 255
    assert np.abs(found.color[:, :, 0] - 255 * (1.055 * light ** (1 / 2.4) - 0.055)).max() <= 1


def test_a_profile_of_srgb_is_that_of_another_library() -> None:
    assert made_profile(Colors.of_codes(1, 13), 3) is None and made_profile(P3, 3) is not None
    assert is_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


@pytest.mark.parametrize("chunks", [{b"sRGB": b"\0", b"gAMA": struct.pack(">I", 45_455)}, {b"gAMA": b"\0\0\0\0"}, {},
                                    {b"gAMA": struct.pack(">I", 45_455)}, {b"cICP": bytes((1, 13, 0, 1))},
                                    {b"cHRM": b"\0" * 32}, {b"cICP": b"\1"}])
def test_what_is_srgb_or_nonsense_changes_nothing(chunks: dict[bytes, bytes]) -> None:
    profile = made_profile(png_colors(chunks), 3)
    assert profile is None or np.abs(to_srgb(PIXELS, profile).astype(int) - PIXELS).max() <= 4  # 2.2 is nearly sRGB


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(tmp_path: Path, transfer: int, name: str) -> None:
    with pytest.raises(ImageError, match=name):
        read_picture(png(tmp_path / "a.png", (b"cICP", bytes((9, transfer, 0, 1)))))


GAIN_MAP = XMP.replace(b'dc:title="a title"', b'dc:title="a title" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" '
                       b'hdrgm:Version="1.0"')


CAMERA = b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" '
NOTE = b'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
BURST = b'GCamera:BurstID="kept" '


@pytest.mark.parametrize("lost, attributes, elements", [
    ("video", CAMERA + BURST + b'GCamera:MotionPhoto="1" GCamera:MicroVideoOffset="5000"', b""),
    ("video", CAMERA + BURST, b"<GCamera:MicroVideo>1</GCamera:MicroVideo>"
                              b"<GCamera:MicroVideoOffset>5000</GCamera:MicroVideoOffset>"),
    ("extended XMP", NOTE + b'xmpNote:HasExtendedXMP="0123"', b""),
    ("extended XMP", NOTE, b"<xmpNote:HasExtendedXMP>0123</xmpNote:HasExtendedXMP>")])
def test_what_no_result_holds_is_no_longer_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str,
                                                     attributes: bytes, elements: bytes) -> None:
    packet = (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
              b'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" dc:title="a title" ' + attributes + b">"
              + elements + b"</rdf:Description></rdf:RDF></x:xmpmeta>")
    found = read_picture(jpeg(tmp_path / "a.jpg", xmp=packet)).metadata.xmp
    assert b"a title" in found and (BURST.strip() in found) == (lost == "video")
    assert not any(name in found for name in (b"MotionPhoto", b"MicroVideo", b"xmpNote", b"Extended"))
    assert len(caplog.messages) == 1 and lost in caplog.text


def test_a_photograph_that_says_it_has_no_video_stays_as_it_is(tmp_path: Path,
                                                               caplog: pytest.LogCaptureFixture) -> None:
    packet = XMP.replace(b'dc:title="a title"', b'dc:title="a title" ' + CAMERA + b'GCamera:MotionPhoto="0"')
    assert read_picture(jpeg(tmp_path / "a.jpg", xmp=packet)).metadata.xmp == packet and not caplog.messages


def test_gain_maps_are_no_longer_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_picture(jpeg(tmp_path / "a.jpg", xmp=GAIN_MAP)).metadata.xmp
    assert b"a title" in found and b"hdrgm" not in found and b"hdr-gain-map" not in found
    assert "gain map" in caplog.text and without_announcements(b"<no xml") is None


# ---- TIFF samples ----

def test_float_samples_from_0_to_255(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((7, 9, 3), dtype=np.float32) * 255
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    assert np.abs(read_picture(tmp_path / "a.tif").color / 257 - values).max() < 0.01
    tifffile.imwrite(tmp_path / "b.tif", values * 20, photometric="rgb")
    with pytest.raises(ImageError, match="float samples"):
        read_picture(tmp_path / "b.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extra_samples_are_alike_in_both_depths(tmp_path: Path, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (7, 9, 5)).astype(dtype)
    tifffile.imwrite(tmp_path / "four.tif", pixels[:, :, :4], photometric="rgb", extrasamples=["unspecified"])
    tifffile.imwrite(tmp_path / "five.tif", pixels, photometric="rgb", extrasamples=["unspecified"] * 2)
    found = read_picture(tmp_path / "four.tif")
    assert found.color.dtype == dtype and np.array_equal(np.dstack((found.color, found.alpha)), pixels[:, :, :4])
    with pytest.raises(ImageError, match="5 channels"):
        read_picture(tmp_path / "five.tif")


@pytest.mark.parametrize("photometric, extra", [("separated", 1), ("rgb", 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fifth_channel_is_refused(tmp_path: Path, photometric: str, extra: int, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((7, 9, 5), 100, dtype), photometric=photometric,
                     extrasamples=["unassalpha", "unspecified"][:extra])
    with pytest.raises(ImageError, match="5 channels"):
        read_picture(tmp_path / "a.tif")


def test_signed_samples_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((7, 9), -5, np.int8), photometric="minisblack")
    with pytest.raises(ImageError, match=re.escape("char")):
        read_picture(tmp_path / "a.tif")


def test_samples_of_64_bits_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((7, 9)), photometric="minisblack")
    for read in (read_picture, read_header):
        with pytest.raises(ImageError, match="64 bits"):
            read(tmp_path / "a.tif")


@pytest.mark.skipif(not AVIF, reason="Pillow without AVIF")
def test_colour_codes_of_avif(tmp_path: Path) -> None:
    """Pillow writes those of sRGB; the bytes are changed to others."""
    Image.fromarray(PIXELS).save(tmp_path / "a.avif", quality=100)
    data = (tmp_path / "a.avif").read_bytes()
    place = data.index(b"colrnclx") + 8

    def coded(*codes: int) -> Path:
        (tmp_path / "b.avif").write_bytes(data[:place] + struct.pack(">HH", *codes) + data[place + 4:])
        return tmp_path / "b.avif"
    plain = read_picture(coded(1, 13))
    assert plain.metadata.icc is None
    for video in (1, 6, 2):
        assert np.array_equal(read_picture(coded(1, video)).color, plain.color)
    assert read_picture(coded(12, 13)).metadata.icc == made_profile(P3, 3)
    with pytest.raises(ImageError, match="PQ"):
        read_picture(coded(9, 16))
