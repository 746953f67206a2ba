"""EXIF blocks against Pillow's reader: nothing lost, in both byte orders, in EXIF blocks and in TIFF files."""
from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from pictures import exif

THUMBNAIL_BYTES = 60_000
MAKER_NOTE, ARTIST = bytes(range(256)), "Ärtist é".encode()


def block(order: str, with_thumbnail: bool = False) -> bytes:
    """A camera's block, written by Pillow; non-ASCII text as cameras write it, which Pillow does not."""
    fields = Image.Exif()
    fields.endian = order
    fields[0x010F], fields[0x0112], fields[0x013B], fields[0x011A] = "maker", 6, "X" * len(ARTIST), 300.0
    fields[0x011B], fields[0x0128] = 300.0, 2
    details = fields.get_ifd(0x8769)
    details[0x829A], details[0x927C], details[0xA434], details[0xA002], details[0xA003] = 0.5, MAKER_NOTE, "lens", 8, 6
    fields.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.5)})
    data = fields.tobytes().removeprefix(b"Exif\0\0").replace(b"X" * len(ARTIST), ARTIST)
    if not with_thumbnail:
        return data
    following = 10 + 12 * struct.unpack_from(order + "H", data, 8)[0]
    thumbnail = struct.pack(order + "HHHIHHI", 1, 0x0103, 3, 1, 6, 0, 0)  # a directory that says: JPEG
    return data[:following] + struct.pack(order + "I", len(data)) + data[following + 4:] + thumbnail


def read(data: bytes) -> dict[str, object]:
    fields = Image.Exif()
    fields.load(data)
    return {"main": dict(fields), "details": dict(fields.get_ifd(0x8769)), "gps": dict(fields.get_ifd(0x8825)),
            "thumbnail": dict(fields.get_ifd(ExifTags.IFD.IFD1))}


@pytest.mark.parametrize("order", ["<", ">"])
def test_upright_changes_orientation_and_thumbnail_and_no_other_byte(order: str) -> None:
    before = block(order, with_thumbnail=True)
    after = exif.upright(b"Exif\0\0" + before)
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert read(after)["main"][0x0112] == 1 and not read(after)["thumbnail"]
    assert read(before)["thumbnail"] == {0x0103: 6}
    assert 2 <= len(changed) <= 5 and ARTIST in after


def with_jpeg(order: str, start: int | None = None, behind: bytes = b"") -> tuple[bytes, int]:
    """A camera's block that ends with a thumbnail (EXIF 2.3, 4.5.4), and where that begins."""
    data = block(order)
    following, place = 10 + 12 * struct.unpack_from(order + "H", data, 8)[0], len(data) + 2 + 2 * 12 + 4
    entries = struct.pack(order + "HHHIIHHIII", 2, 0x0201, 4, 1, start or place, 0x0202, 4, 1,
                          max(THUMBNAIL_BYTES + place - (start or place), 1), 0)
    return (data[:following] + struct.pack(order + "I", len(data)) + data[following + 4:] + entries
            + b"\xff\xd8".ljust(THUMBNAIL_BYTES, b"t") + behind), place


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("padding", [b"", b"\0\0\0"])
def test_a_thumbnail_at_the_end_is_cut_off(order: str, padding: bytes) -> None:
    before, place = with_jpeg(order, behind=padding)
    after = exif.upright(before)
    old, new = read(before), read(after)
    assert old["thumbnail"][0x0202] == THUMBNAIL_BYTES and len(after) == place and not new["thumbnail"]
    assert old["main"].pop(0x0112) == 6 and new["main"].pop(0x0112) == 1
    assert {**new, "thumbnail": None} == {**old, "thumbnail": None} and ARTIST in after and MAKER_NOTE in after


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_with_more_behind_it_or_over_other_values_stays(order: str) -> None:
    for before, _ in (with_jpeg(order, behind=b"a preview of the maker's"), with_jpeg(order, start=60),
                      with_jpeg(order, start=10 ** 6)):
        after = exif.upright(before)
        assert len(after) == len(before) and read(after)["details"] == read(before)["details"]


@pytest.mark.parametrize("data", [b"", b"II", b"nonsense", b"II*\0\xff\xff\0\0", b"MM\0*\0\0\0\x08\xff\xff\0"])
def test_damaged_blocks_raise_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        exif.upright(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_described_adds_fields_and_moves_nothing(order: str) -> None:
    before = block(order)
    after = exif.described(before, exif.Said(60, 80, True, "software", '{"seed": "1"}'))
    old, new = read(before), read(after)
    assert after.index(MAKER_NOTE) == before.index(MAKER_NOTE) and after.index(ARTIST) == before.index(ARTIST)
    assert new["main"].pop(0x0131) == "software" and new["details"].pop(0x9286) == b'ASCII\0\0\0{"seed": "1"}'
    assert new["details"].pop(0xA001) == 1 and new["details"].pop(0xA002) == 80 and new["details"].pop(0xA003) == 60
    for pointer in (0x8769, 0x8825):
        old["main"].pop(pointer), new["main"].pop(pointer)
    old["details"].pop(0xA002), old["details"].pop(0xA003)
    assert new == old


@pytest.mark.parametrize("order", ["<", ">"])
def test_described_says_the_size_wherever_the_block_does(order: str) -> None:
    fields = Image.Exif()
    fields.endian = order
    fields[0x0100], fields[0x0101], fields[0x010F] = 8, 6, "maker"
    after = exif.described(fields.tobytes().removeprefix(b"Exif\0\0"), exif.Said(60, 80_000, True))
    new = read(after)
    assert [new["main"][tag] for tag in (0x0100, 0x0101, 0x010F)] == [80_000, 60, "maker"]
    assert set(new["details"]) == {0xA001}  # where it says none, none is added


def test_described_makes_a_new_block() -> None:
    new = read(exif.described(None, exif.Said(6, 8, False, "software")))
    assert new["main"][0x0131] == "software" and new["details"] == {0xA001: 0xFFFF}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_into_a_tiff_file_and_out_again(tmp_path: Path, order: str, big: bool) -> None:
    path, pixels = tmp_path / "a.tif", np.arange(48, dtype=np.uint8).reshape(6, 8)
    tifffile.imwrite(path, pixels, bigtiff=big, byteorder="<", rowsperstrip=2)
    exif.into_tiff(path, exif.upright(block(order)), {}, (1.0, 1.0))
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        assert file.is_bigtiff == big and np.array_equal(file.asarray(), pixels)
        assert tags[0x010F].value == "maker" and tags["ExifTag"].value["LensModel"] == "lens"
        assert bytes(tags["ExifTag"].value["MakerNote"]) == MAKER_NOTE and tags["GPSTag"].value["GPSLatitudeRef"] == "N"
    with Image.open(path) as file:
        assert np.array_equal(np.asarray(file), pixels) and dict(file.getexif().get_ifd(0x8825))[2] == (1, 2, 3.5)
    found, expected = exif.of_tiff(path), read(exif.upright(block("<")))
    assert ARTIST in found
    assert read(found)["details"] == expected["details"] and read(found)["gps"] == expected["gps"]
    assert exif.resolution(found) == pytest.approx((300 / 25.4, 300 / 25.4))


def test_descriptions_of_an_array_are_left_out(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 8), np.uint8), software="camera")
    fields = read(exif.of_tiff(tmp_path / "a.tif"))["main"]
    assert fields[0x0131] == "camera" and 0x010E not in fields
    assert exif.of_tiff(Path(__file__)) is None
