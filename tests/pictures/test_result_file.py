"""Results written in bands, against Pillow and tifffile; nothing half-written, whatever goes wrong."""
from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from conftest import color_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pictures import file_writer as encode
from pictures import result_file
from pictures.formats import AVIF, HEIF, JPEG_XL, ImageError
from pictures.picture import Metadata, Picture, read_picture
from pictures.result_file import ResultFile, ResultOptions

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
OPTIONAL = [suffix[1:] for suffix in (*AVIF[:1], *HEIF[:1], *JPEG_XL)]
TEXT = (("Software", "VARSR 1.0"), ("model", "tiny"), ("seed", "7"))


def picture(height: int = 9, width: int = 12, channels: int = 3, dtype: type = np.uint8, seed: int = 0,
            metadata: Metadata | None = None) -> Picture:
    """Noise of 1 gray, 2 gray and alpha, 3 RGB or 4 RGB and alpha channels, everything a little visible."""
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)
    colors = channels - (channels + 1) % 2
    alpha = pixels[:, :, colors] | 1 if channels > colors else None
    return Picture(pixels[:, :, :colors], alpha, colors == 1, metadata or Metadata(), "png")


def write(path: Path, source: Picture, options: ResultOptions | None = None) -> Path:
    """The picture unchanged through a result file."""
    file = ResultFile(path, source, source.height, source.width, options or ResultOptions())
    file.write_rows(0, source.region(0, 0, source.height, source.width))
    file.finish()
    assert not [p for p in path.parent.iterdir() if ".part" in p.name]
    return path


def all_channels(source: Picture) -> np.ndarray:
    return (source.color if source.alpha is None else np.dstack((source.color, source.alpha))).squeeze()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_and_png_are_exact(tmp_path: Path, channels: int, dtype: type) -> None:
    source = picture(channels=channels, dtype=dtype)
    path = write(tmp_path / "a.tif", source)
    with tifffile.TiffFile(path) as file:
        assert np.array_equal(file.asarray(), all_channels(source)) and file.pages[0].dtype == dtype
        assert file.pages[0].extrasamples == ((2,) if channels in (2, 4) else ())
    path = write(tmp_path / "a.png", source)
    header = path.read_bytes()[24:26]
    assert header == bytes([8 * np.dtype(dtype).itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]])
    if dtype == np.uint8:
        assert np.array_equal(np.asarray(Image.open(path)), all_channels(source))
    else:  # Pillow reads 16 bits of gray alone
        assert np.array_equal(all_channels(read_picture(path)), all_channels(source))


@pytest.mark.parametrize("suffix, mode", [("jpg", "RGB"), ("jpg", "L"), ("webp", "RGB"), ("webp", "RGBA"),
                                          ("bmp", "RGB"), ("bmp", "L"), *((kind, "RGBA") for kind in OPTIONAL)])
def test_other_kinds_keep_mode_and_look(tmp_path: Path, suffix: str, mode: str) -> None:
    ramp = np.linspace(40, 200, 64).astype(np.uint8)
    color = np.dstack([ramp[None].repeat(64, 0), ramp[:, None].repeat(64, 1), np.full((64, 64), 90, np.uint8)])
    alpha = np.where(ramp > 100, 255, 120)[None].repeat(64, 0).astype(np.uint8) if mode == "RGBA" else None
    source = Picture(color[:, :, :1] if mode == "L" else color, alpha, mode == "L", Metadata(), "png")
    path = write(tmp_path / f"a.{suffix}", source)
    with Image.open(path) as file:
        found = np.asarray(file).astype(int)
        assert file.mode == mode
    assert np.abs(found.reshape(64, 64, -1) - all_channels(source).reshape(64, 64, -1)).mean() < 2


def exif_block() -> bytes:
    fields = Image.Exif()
    fields.update({271: "maker", 272: "model", 306: "2020:01:02 03:04:05", 315: "a", 33432: "c"})
    fields.get_ifd(0x8769).update({0x829A: 0.5, 0xA434: "lens", 0x927C: b"note\1\2", 0xA002: 12, 0xA003: 9})
    fields.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.5)})
    return fields.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", *OPTIONAL])
def test_metadata_is_kept_and_the_making_told(tmp_path: Path, suffix: str) -> None:
    icc = color_profile()
    source = picture(metadata=Metadata(exif_block(), XMP, icc))
    path = tmp_path / f"a.{suffix}"
    file = ResultFile(path, source, 18, 24, ResultOptions(text=TEXT))
    file.write_rows(0, torch.zeros(3, 18, 24))
    file.finish()
    with Image.open(path) as opened:
        opened.load()
        fields, info = opened.getexif(), opened.info
        text = dict(getattr(opened, "text", {}))
    details = fields.get_ifd(0x8769)
    assert [fields[tag] for tag in (271, 272, 306, 315, 33432, 305)] == [
        "maker", "model", "2020:01:02 03:04:05", "a", "c", "VARSR 1.0"]
    assert details[0xA434] == "lens" and details[0x829A] == 0.5 and details[0x927C] == b"note\1\2"
    assert (details[0xA002], details[0xA003]) == (24, 18) and fields.get_ifd(0x8825)[2] == (1.0, 2.0, 3.5)
    assert json.loads(details[0x9286].removeprefix(b"ASCII\0\0\0")) == {"model": "tiny", "seed": "7"}
    if suffix != "jxl":  # its package writes no profile (the pixels are sRGB then) and reads no XMP
        assert info["icc_profile"] == icc and read_picture(path).metadata.xmp == XMP
    if suffix == "png":
        assert text["Software"] == "VARSR 1.0" and json.loads(text["VARSR"]) == {"model": "tiny", "seed": "7"}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_stripped_files_hold_pixels_alone(tmp_path: Path, suffix: str) -> None:
    source = picture(metadata=Metadata(exif_block(), XMP, color_profile()))
    path = write(tmp_path / f"a.{suffix}", source, ResultOptions(strip_metadata=True, text=TEXT))
    data = path.read_bytes()
    assert read_picture(path).metadata == Metadata()
    assert not any(word in data for word in (b"maker", b"VARSR", b"xmpmeta", b"acsp"))
    if suffix in ("png", "tif"):
        assert np.array_equal(np.asarray(Image.open(path)), source.color)  # sRGB, as computed


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("space, gamma", [("RGB ", 2.19921875), ("GRAY", 1.8)])
def test_colours_go_back_to_their_profile(tmp_path: Path, space: str, gamma: float, suffix: str) -> None:
    icc, shape = color_profile(space, gamma), (16, 16, 3) if space == "RGB " else (16, 16)
    # tones that sRGB can hold, away from black, where both curves are steep
    pixels = np.random.default_rng(0).integers(90, 170, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=icc)
    path = write(tmp_path / f"b.{suffix}", read_picture(tmp_path / "a.png"))
    with Image.open(path) as file:
        if suffix == "bmp":  # cannot name a profile: sRGB
            assert np.abs(np.asarray(file).astype(int) - read_picture(tmp_path / "a.png").color.squeeze()).max() == 0
        else:
            assert np.abs(np.asarray(file).astype(int) - pixels).max() <= 2 and file.info["icc_profile"] == icc


@pytest.mark.parametrize("suffix, alpha, keeps", [
    ("webp", False, False), ("webp", True, False),
    *((kind, alpha, not alpha) for kind in OPTIONAL if kind in ("avif", "heic") for alpha in (False, True))])
def test_a_gray_profile_is_that_of_gray_files_alone(tmp_path: Path, suffix: str, alpha: bool, keeps: bool,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    """Beside pixels that Pillow reads as RGB it would be ignored, and light gray would look dark."""
    caplog.set_level("INFO")
    icc, tones = color_profile("GRAY", 1.0), np.tile(np.arange(60, 188, 2, dtype=np.uint8), (64, 1))
    gray = Image.fromarray(tones)
    if alpha:
        gray.putalpha(Image.fromarray(np.ascontiguousarray(tones.T)))
    gray.save(tmp_path / "a.png", icc_profile=icc)
    source = read_picture(tmp_path / "a.png")
    path = write(tmp_path / f"b.{suffix}", source)
    with Image.open(path) as file:
        found = np.asarray(file).reshape(64, 64, -1)[:, :, 0].astype(int)
        assert file.info.get("icc_profile") == (icc if keeps else None)
    light = tones / 255
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found - (tones if keeps else srgb)).mean() < 2
    assert np.abs(read_picture(path).color[:, :, 0].astype(int) - srgb).mean() < 2
    assert (f"{path}: .{suffix} files hold gray" in caplog.text) == (not keeps)


@pytest.mark.skipif(not AVIF, reason="Pillow without AVIF")
@pytest.mark.parametrize("quality", [80, 95])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_gray_avif_has_no_planes_of_colour(tmp_path: Path, channels: int, quality: int) -> None:
    path = write(tmp_path / "a.avif", picture(channels=channels), ResultOptions(quality=quality))
    data = path.read_bytes()
    monochrome = data[data.index(b"av1C") + 6] >> 4 & 1  # of the first picture, the colours (AV1-ISOBMFF, 2.3.3)
    assert monochrome == (channels < 3)


def test_16_bit_profiles_go_back_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(28_000, 40_000, (16, 16, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", iccprofile=color_profile())
    found = tifffile.imread(write(tmp_path / "b.tif", read_picture(tmp_path / "a.tif")))
    assert found.dtype == np.uint16 and np.abs(found.astype(int) - pixels).max() <= 80


def test_16_bits_become_8_where_the_kind_has_no_more(tmp_path: Path) -> None:
    source = picture(dtype=np.uint16)
    path = write(tmp_path / "a.bmp", source)
    assert np.array_equal(np.asarray(Image.open(path)), (source.color / 257).round().astype(np.uint8))


def test_gray_results_are_bt601_luma(tmp_path: Path) -> None:
    values = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0))
    file = ResultFile(tmp_path / "a.png", picture(channels=1), 9, 12)
    file.write_rows(0, values)
    file.finish()
    expected = Image.fromarray((values * 255).round().byte().permute(1, 2, 0).numpy()).convert("L")
    with Image.open(tmp_path / "a.png") as found:
        assert found.mode == "L" and np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1


def test_values_are_clamped_and_rounded(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "a.png", picture(1, 3), 1, 3)
    file.write_rows(0, torch.tensor([-1.0, 0.5, 2.0]).expand(3, 1, 3))
    file.finish()
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 128, 255]


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 200), scale=st.floats(1, 4), cuts=st.lists(st.integers(0, 800), max_size=6),
       order=st.randoms(use_true_random=False), dtype=st.sampled_from([np.uint8, np.uint16]))
def test_bands_in_any_order_give_the_same_file(tmp_path_factory: pytest.TempPathFactory, height: int, scale: float,
                                               cuts: list[int], order: object, dtype: type) -> None:
    folder = tmp_path_factory.mktemp("bands")
    source = picture(height, 5, 4, dtype)
    rows, columns = round(height * scale), round(5 * scale)
    restored = torch.rand(3, rows, columns, generator=torch.Generator().manual_seed(0))
    whole = ResultFile(folder / "whole.tif", source, rows, columns)
    whole.write_rows(0, restored)
    whole.finish()
    banded = ResultFile(folder / "banded.tif", source, rows, columns, spool=folder / "spool")
    borders = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    bands = list(zip(borders, borders[1:]))
    order.shuffle(bands)
    for top, bottom in bands:
        banded.write_rows(top, restored[:, top:bottom])
    banded.finish()
    assert (folder / "whole.tif").read_bytes() == (folder / "banded.tif").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["banded.tif", "whole.tif"]


@pytest.mark.parametrize("scale", [1, 2, 3.7])
def test_alpha_is_pillows_lanczos(tmp_path: Path, scale: float) -> None:
    source = picture(150, 20, 4)
    rows, columns = round(150 * scale), round(20 * scale)
    file = ResultFile(tmp_path / "a.png", source, rows, columns)
    file.write_rows(0, torch.zeros(3, rows, columns))
    file.finish()
    alpha = Image.fromarray(source.alpha.astype(np.float32))  # of bytes, Pillow clips between its two passes
    expected = np.asarray(alpha.resize((columns, rows), Image.Resampling.LANCZOS)).clip(0, 255)
    found = np.asarray(Image.open(tmp_path / "a.png"))[:, :, 3]
    assert np.abs(found - expected).max() <= 0.51


def test_shapes_on_transparency_get_no_fringe(tmp_path: Path) -> None:
    pixels = np.zeros((24, 24, 4), np.uint8)
    pixels[8:16, 8:16] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = read_picture(tmp_path / "a.png")
    enlarged = F.interpolate(source.region(0, 0, 24, 24)[None], size=(65, 65), mode="bicubic", antialias=True)[0]
    for name in ("b.png", "b.jpg"):
        file = ResultFile(tmp_path / name, source, 65, 65, ResultOptions(quality=100))
        file.write_rows(0, enlarged)
        file.finish()
        shown = Image.open(tmp_path / name).convert("RGBA")
        shown = np.asarray(Image.alpha_composite(Image.new("RGBA", (65, 65), "white"), shown))
        assert shown[:, :, 0].min() >= 250  # from red to white, never dark
    assert np.asarray(Image.open(tmp_path / "b.png"))[32, 32].tolist() == [255, 0, 0, 255]


def test_processes_share_a_spool(tmp_path: Path) -> None:
    source, spool = picture(dtype=np.uint16), tmp_path / "spool"
    halves = [ResultFile(tmp_path / "a.tif", source, 9, 12, spool=spool) for _ in range(2)]
    halves[1].write_rows(4, source.region(4, 0, 5, 12))
    halves[1].close()
    halves[0].write_rows(0, source.region(0, 0, 4, 12))
    halves[0].close()
    assert spool.exists() and not (tmp_path / "a.tif").exists()
    ResultFile(tmp_path / "a.tif", source, 9, 12, spool=spool).finish()
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), source.color) and not spool.exists()
    spool.write_bytes(b"of something else")
    file = ResultFile(tmp_path / "a.tif", source, 9, 12, spool=spool)
    file.write_rows(0, source.region(0, 0, 9, 12))
    file.finish()
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), source.color)


def test_large_results_wait_in_a_file_and_become_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_file, "MEMORY_BYTES", 1)
    monkeypatch.setattr(encode, "CLASSIC_TIFF_BYTES", 1)
    source = picture(31, 17, 4, metadata=Metadata(exif_block(), XMP, None))
    file = ResultFile(tmp_path / "a.tif", source, 31, 17, ResultOptions(text=TEXT))
    assert [p.suffix for p in tmp_path.iterdir()] == [".spool"]
    file.write_rows(0, source.region(0, 0, 31, 17))
    file.finish()
    with tifffile.TiffFile(tmp_path / "a.tif") as found:
        assert found.is_bigtiff and np.array_equal(found.asarray(), all_channels(source))
        assert found.pages[0].tags["Make"].value == "maker"
        assert found.pages[0].tags["ExifTag"].value["LensModel"] == "lens"
        assert found.pages[0].tags["Software"].value == "VARSR 1.0"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    for suffix in ("png", "bmp"):
        write(tmp_path / f"b.{suffix}", source)


@pytest.mark.parametrize("name, height, width, reason", [
    ("a.webp", 10, 16_384, "16383 a side.*png"), ("a.jpg", 65_501, 10, "65500 a side.*tif"), ("a.gif", 9, 12, "kinds"),
    ("a.xyz", 9, 12, "kinds"), ("folder.png", 9, 12, "folder"), ("file/a.png", 9, 12, "cannot be written")])
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, height: int, width: int,
                                                   reason: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=reason) as error:
        ResultFile(tmp_path / name, picture(), height, width)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "a.png", picture(), 9, 12)
    for top, shape in ((0, (3, 9, 11)), (5, (3, 5, 12)), (-1, (3, 2, 12)), (0, (1, 9, 12))):
        with pytest.raises(ValueError, match="do not fit"):
            file.write_rows(top, torch.zeros(shape))


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files end at `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as Linux keeps them")
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "bmp"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"before")
    source = picture(100, 100, 3, metadata=Metadata(exif_block()))
    file = ResultFile(path, source, 100, 100)
    file.write_rows(0, source.region(0, 0, 100, 100))
    with room_for(4096), pytest.raises(ImageError, match="cannot be written") as error:
        file.finish()
    assert path.name in str(error.value) and "\n" not in str(error.value)
    file.discard()
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"before"


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as Linux keeps them")
@pytest.mark.parametrize("given", [False, True])
def test_a_full_disk_shows_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    monkeypatch.setattr(result_file, "MEMORY_BYTES", 1)
    with room_for(4096), pytest.raises(ImageError, match="cannot be written"):
        ResultFile(tmp_path / "a.png", picture(), 100, 100, spool=tmp_path / "spool" if given else None)
    assert not list(tmp_path.iterdir())


def test_discard_leaves_nothing_of_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_file, "MEMORY_BYTES", 1)
    file = ResultFile(tmp_path / "a.png", picture(), 9, 12)
    file.write_rows(0, torch.zeros(3, 4, 12))
    file.discard()
    file.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user without all rights")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ImageError, match="no permission"):
        ResultFile(tmp_path / "closed" / "a.png", picture(), 9, 12)
