"""Crops of photographs: range, determinism, the cache, broken files."""
from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_picture as picture
from PIL import Image, ImageFilter

from dataloader.entries import Entry
from dataloader.pairs import drawn
from dataloader.photo_crops import PhotoCrops, PyramidCache, local_detail, sharpness


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "trainset"
    (root / "deep" / "er").mkdir(parents=True)
    picture(200, 300, 0).save(root / "a.png")
    picture(150, 100, 1).save(root / "deep" / "er" / "b.webp", lossless=True)
    return root


def test_shape_range_and_determinism(folder):
    crops = PhotoCrops(folder, 32)
    batch = drawn(crops, 6, seed=3)
    assert batch.shape == (6, 3, 32, 32) and batch.dtype == torch.float32
    assert batch.min() >= 0 and batch.max() <= 1
    assert torch.equal(batch, drawn(PhotoCrops(folder, 32), 6, seed=3))
    assert not torch.equal(batch, drawn(crops, 6, seed=4))


def test_crops_are_cut_from_the_photograph_in_all_eight_orientations(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    pixels = np.zeros((9, 9, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.mgrid[:9, :9] * 20
    Image.fromarray(pixels).save(root / "ramp.png")
    crops = PhotoCrops(root, 8, level_weights=(1,), min_detail=0)
    batch = (drawn(crops, 200, seed=0) * 255).round().int()
    seen = set()
    for crop in batch:
        down, right = crop[:, 1, 0] - crop[:, 0, 0], crop[:, 0, 1] - crop[:, 0, 0]
        seen.add((*down[:2].tolist(), *right[:2].tolist()))
        assert {abs(int(v)) for v in (*down[:2], *right[:2])} == {0, 20}
        assert crop[:2].amax() <= 160
    assert len(seen) == 8


def test_levels_are_area_averages(tmp_path):
    picture(64, 48).save(tmp_path / "a.png")
    files = PyramidCache(tmp_path / "cache", 3).level_files(Entry(tmp_path / "a.png"))
    full, half, quarter = (np.load(file).astype(float) for file in files)
    assert np.array_equal(full, np.asarray(Image.open(tmp_path / "a.png")))
    for level, factor in ((half, 2), (quarter, 4)):
        mean = full.reshape(64 // factor, factor, 48 // factor, factor, 3).mean((1, 3))
        assert np.abs(level - mean).max() <= 1


def test_small_levels_are_left_out(folder):
    crops = PhotoCrops(folder, 60, level_weights=(1, 1))
    assert sorted(len(files) for files in crops.levels) == [2]  # halves are below 120 pixels
    assert drawn(PhotoCrops(folder, 50, level_weights=(0, 1)), 2, seed=0).shape == (2, 3, 50, 50)


def test_cache_is_reused_and_follows_changes(folder):
    cache = folder.parent / ".cache" / "photo-pyramids"
    first = drawn(PhotoCrops(folder, 32), 4, seed=0)
    written = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(written) == 8 and not list(cache.glob("*.part"))
    PhotoCrops(folder, 32)
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == written
    picture(200, 300, 9).save(folder / "a.png")
    os.utime(folder / "a.png", ns=(time.time_ns(), time.time_ns() + 10**9))
    assert not torch.equal(drawn(PhotoCrops(folder, 32), 4, seed=0), first)


def test_broken_and_small_pictures_are_skipped_by_name(folder, caplog):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    picture(10, 300).save(folder / "narrow.png")
    (folder / "notes.txt").write_text("not looked at")
    with caplog.at_level(logging.WARNING):
        crops = PhotoCrops(folder, 32)
    assert sorted(Path(name).name for name in crops.failures.reasons) == ["cut.png", "narrow.png", "text.jpg"]
    assert all(name in caplog.text for name in ("cut.png", "narrow.png", "text.jpg"))
    assert drawn(crops, 8, seed=0).shape == (8, 3, 32, 32)


def test_flat_crops_are_mostly_drawn_anew(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    pixels = np.linspace(0, 255, 400).astype(np.uint8)[None, :, None].repeat(400, 0).repeat(3, 2)
    pixels[:, 200:] = np.asarray(picture(400, 200))  # half smooth sky, half detail
    Image.fromarray(pixels).save(root / "a.png")

    def detailed(**options) -> float:
        batch = drawn(PhotoCrops(root, 32, level_weights=(1,), **options), 150, seed=0)
        return float(((batch.std(dim=(2, 3))).mean(1) > 0.1).float().mean())
    assert detailed(min_detail=0, min_sharpness=0) < 0.7
    assert detailed() > 0.85


def test_local_detail_is_what_averaging_by_four_loses():
    crop = np.asarray(picture(35, 50)).astype(np.uint8)
    luma = (crop[:32, :48] @ np.array((0.299, 0.587, 0.114))) / 255
    blocks = luma.reshape(8, 4, 12, 4).transpose(0, 2, 1, 3).reshape(96, 16)
    assert local_detail(crop) == pytest.approx(np.sqrt(blocks.var(axis=1).mean()), rel=1e-3)
    ramp = np.arange(64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    assert local_detail(ramp) < 0.005 < ramp.std() / 255


def test_sharpness_is_a_matter_of_blur_and_not_of_contrast():
    sharp = picture(64, 64)
    blurred = sharp.filter(ImageFilter.GaussianBlur(2))
    values = [sharpness(np.asarray(each)) for each in (sharp, blurred)]
    assert values[0] > 0.5 > 0.33 > values[1] > 0
    faint = (np.asarray(sharp).astype(float) / 4 + 90).round().astype(np.uint8)
    assert sharpness(faint) == pytest.approx(values[0], abs=0.02)
    assert sharpness(np.zeros((64, 64, 3), np.uint8)) == 0


def test_soft_crops_are_mostly_drawn_anew(tmp_path):
    pixels = np.asarray(picture(400, 400)).copy()
    pixels[:, :250] = np.asarray(Image.fromarray(pixels[:, :250]).filter(ImageFilter.GaussianBlur(2)))
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def soft(**options) -> float:
        crops = PhotoCrops(tmp_path, 32, level_weights=(1,), **options)
        drawn = [crops.sample(i, 0)[0] for i in range(150)]
        return float(np.mean([sharpness(crop) < 0.33 for crop in drawn]))
    assert soft(min_sharpness=0) > 0.3
    assert soft() < 0.15


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataloader.assemble.photos"):
        PhotoCrops(tmp_path / "absent", 32)
    with pytest.raises(FileNotFoundError, match="no picture"):
        PhotoCrops(tmp_path, 32)
    with pytest.raises(ValueError, match="crop_size"):
        PhotoCrops(tmp_path, 0)


def test_weights_of_a_list_decide_how_often_a_picture_is_drawn(tmp_path):
    for name, level in (("a", 40), ("b", 80), ("c", 120)):
        Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / f"{name}.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png, 3\nc.png, 0\ngone.png\n")
    crops = PhotoCrops(tmp_path / "list.txt", 32, min_detail=0)
    assert list(crops.failures.reasons) == [str(tmp_path / "gone.png")]
    levels = (drawn(crops, 400, seed=0)[:, 0, 0, 0] * 255).round()
    assert set(levels.tolist()) == {40, 80}
    assert float((levels == 80).float().mean()) == pytest.approx(0.75, abs=0.07)


def test_a_cache_lost_while_training_is_named_once_and_passed_over(folder, caplog):
    crops = PhotoCrops(folder, 32)
    for file in (folder.parent / ".cache" / "photo-pyramids").iterdir():
        if np.load(file, mmap_mode="r").shape[1] < np.load(file, mmap_mode="r").shape[0]:  # of b.webp
            file.write_bytes(b"")
    expected = PhotoCrops(folder / "a.png", 32, cache=folder.parent / ".cache" / "photo-pyramids")
    batch = drawn(crops, 40, seed=0)
    assert caplog.text.count("b.webp") == 1 and list(crops.failures.reasons) == [str(folder / "deep/er/b.webp")]
    assert batch.shape == (40, 3, 32, 32) and drawn(expected, 1, seed=0).shape == (1, 3, 32, 32)
    for file in (folder.parent / ".cache" / "photo-pyramids").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="rebuild the cache"):
        drawn(crops, 1, seed=0)
