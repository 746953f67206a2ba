"""Reading and writing pictures, against Pillow; every kind of bad file."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictures.formats import HEIF, JPEG_XL, ImageError
from pictures.rgb import TensorSource, read_image, to_pillow, write_image

ROOT = Path(__file__).resolve().parents[2]


def pixels(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_array(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 6, 9) and image.dtype == torch.float32
    write_image(tmp_path / "new" / "b.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "b.png")), pixels())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.png"]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels())
    exif = picture.getexif()
    exif[274] = 6  # turned by a quarter
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(as_array(read_image(tmp_path / "a.png")), np.rot90(pixels(), -1))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    picture = Image.fromarray(pixels()).convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(as_array(read_image(tmp_path / f"a.{suffix}")), np.asarray(picture.convert("RGB")))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").eq(1).all()


def test_16_bit_gray_keeps_its_depth(tmp_path: Path) -> None:
    values = np.array([[0, 257, 40_000, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[1].numpy(), values / 65_535, atol=1e-6)


def test_bad_files_are_named_with_the_reason(tmp_path: Path) -> None:
    Image.fromarray(pixels(200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name, reason in (("truncated.jpg", "cannot be read"), ("text.png", "not a picture"),
                         ("empty.png", "empty"), ("missing.png", "no such file")):
        with pytest.raises(ImageError, match=reason) as error:
            read_image(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels(100, 100)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="too many pixels.*--max_pixels"):
        read_image(tmp_path / "a.png", max_pixels=9_999)
    assert read_image(tmp_path / "a.png", max_pixels=10_000).shape == (3, 100, 100)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.zeros(3, 2, 2))
    before = (tmp_path / "a.png").read_bytes()
    for name in ("a.xyz", "a.psd", "a.gif", "a"):
        with pytest.raises(ImageError, match=f"{name}: cannot be written.*png"):
            write_image(tmp_path / name, torch.zeros(3, 2, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == before


@pytest.mark.skipif(not HEIF + JPEG_XL, reason="no packages for HEIC and JPEG XL")
def test_kinds_of_packages_are_written_before_anything_is_read(tmp_path: Path) -> None:
    """In a process of its own: the packages register themselves for a whole process."""
    program = "import sys, torch, pictures.rgb as rgb; rgb.write_image(sys.argv[1], torch.zeros(3, 16, 16))"
    for suffix in (*HEIF[:1], *JPEG_XL):
        subprocess.run([sys.executable, "-c", program, tmp_path / f"a{suffix}"], cwd=ROOT, check=True)
        assert read_image(tmp_path / f"a{suffix}").shape == (3, 16, 16)


def test_values_are_rounded_and_clamped() -> None:
    assert np.asarray(to_pillow(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1))).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 4), (1, 4, 4), (4, 4, 4), (3, 0, 4), (0, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for use in (TensorSource, to_pillow):
        with pytest.raises(ValueError, match=r"must be \(3, height, width\)"):
            use(torch.zeros(shape))


def test_whole_numbers_are_refused(tmp_path: Path) -> None:
    levels = torch.from_numpy(pixels()).permute(2, 0, 1)
    for use in (TensorSource, to_pillow, lambda picture: write_image(tmp_path / "a.png", picture)):
        with pytest.raises(ValueError, match=r"uint8, must be floats in \[0, 1\]: divide 8-bit levels by 255"):
            use(levels)
    assert not list(tmp_path.iterdir())
