"""Training crops from folders of photographs.

`PhotoCrops` draws random crops at several scales from cached photographs: the sampler for training from few large
pictures. `PublishedCrops` is the recipe of the VARSR paper: one centre crop of every picture.
Both draw synchronously from the `torch.Generator` they are given, so that a run resumes exactly.
"""
from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .pyramid import UNREADABLE, PyramidCache, find_images, read_rgb

log = logging.getLogger(__name__)

CACHE_FOLDER = Path(".cache", "photo-pyramids")  # next to the folder of photographs
LEVEL_WEIGHTS = (0.15, 0.35, 0.35, 0.15)  # the full resolution of a photograph is often soft or noisy
MAX_DRAWS = 4  # tries for a crop with detail before a flat one is taken
LUMA = np.array((0.299, 0.587, 0.114), dtype=np.float32)  # BT.601
DETAIL_BLOCK = 4  # pixels
LEVELS = 255.0
POSITIVE, NEGATIVE = 0, 1  # the classes of high and low quality


class PhotoCrops:
    """Random square crops, flipped and turned, of all photographs below a folder, at full and reduced scales."""

    def __init__(self, root: str | os.PathLike, crop_size: int, *, cache: str | os.PathLike | None = None,
                 level_weights: Sequence[float] = LEVEL_WEIGHTS, min_detail: float = 0.012,
                 flat_probability: float = 0.1, symmetries: int = 8) -> None:
        """Decode what is not in the cache yet (about a second for 10 megapixels, once).

        root: searched recursively. cache: folder for decoded photographs (4 bytes a pixel); by default
        `.cache/photo-pyramids` beside `root`. level_weights: how often level i (reduced 2^i times) is drawn; a
        reduced photograph only counts where its short side is at least twice the crop. min_detail: a crop whose
        `local_detail` is lower is drawn anew (up to 3 times), except with flat_probability. symmetries: 8 for all
        flips and quarter turns, 2 for mirroring alone, 1 for none.
        Broken or too small pictures are skipped with a warning and listed in `skipped`.

        Raises FileNotFoundError when nothing usable is found, ValueError for bad settings.
        """
        if crop_size < 1 or not level_weights or min(level_weights) < 0 or sum(level_weights) <= 0:
            raise ValueError(f"crop_size must be positive and level_weights a non-empty row of shares, "
                             f"got {crop_size} and {tuple(level_weights)}")
        root = Path(root)
        self.crop_size, self.min_detail, self.flat_probability = crop_size, min_detail, flat_probability
        self.symmetries = symmetries
        self.skipped: list[Path] = []
        pyramid = PyramidCache(cache or root.resolve().parent / CACHE_FOLDER, len(level_weights))
        levels: list[list[tuple[Path, int, int]]] = [[] for _ in level_weights]  # (file, height, width)
        photos = find_images(root)
        for photo in photos:
            self._index(photo, pyramid, levels)
        if not any(levels):
            raise FileNotFoundError(f"no picture of at least {crop_size}x{crop_size} pixels below {root} "
                                    f"({len(photos)} files looked at, {len(self.skipped)} skipped)")
        used = [(weight, files) for weight, files in zip(level_weights, levels) if files and weight > 0]
        if not used:
            raise ValueError(f"level_weights {tuple(level_weights)} leave no level of the pictures below {root}")
        self._level_ends = list(accumulate(weight for weight, _ in used))
        self._levels = [files for _, files in used]
        # by the square root of the area: large photographs more often, but not as much as they have pixels
        self._photo_ends = [list(accumulate((height * width) ** 0.5 for _, height, width in files))
                            for files in self._levels]
        log.info("%d photographs below %s, %d skipped", len(photos) - len(self.skipped), root, len(self.skipped))

    def _index(self, photo: Path, pyramid: PyramidCache, levels: list[list[tuple[Path, int, int]]]) -> None:
        try:
            files = pyramid.level_files(photo)
        except PermissionError as error:
            raise PermissionError(f"cannot read {photo} or write its cache {pyramid.folder} ({error}): "
                                  "choose a writable folder with `cache`") from error
        except UNREADABLE as error:
            log.warning("skipped %s: %s", photo, error)
            self.skipped.append(photo)
            return
        usable = 0
        for level, file in enumerate(files):
            height, width, _ = np.load(file, mmap_mode="r").shape
            if min(height, width) >= self.crop_size * (2 if level else 1):
                levels[level].append((file, height, width))
                usable += 1
        if not usable:
            log.warning("skipped %s: smaller than a crop of %d pixels", photo, self.crop_size)
            self.skipped.append(photo)

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` crops: (B, 3, S, S), float32 in [0, 1]; all randomness comes from the CPU `generator`."""
        crops = np.stack([self._draw(generator) for _ in range(count)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous().float().div_(LEVELS)

    def _draw(self, generator: torch.Generator) -> np.ndarray:
        """One crop (S, S, 3) uint8."""
        for attempt in range(MAX_DRAWS):
            level, photo, top, left, flat, turn = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
            which = _pick(self._level_ends, level)
            file, height, width = self._levels[which][_pick(self._photo_ends[which], photo)]
            # mapped anew each time: an open map holds a file handle, and there may be thousands of photographs
            pixels = np.load(file, mmap_mode="r")
            top, left = int(top * (height - self.crop_size + 1)), int(left * (width - self.crop_size + 1))
            crop = np.asarray(pixels[top:top + self.crop_size, left:left + self.crop_size])
            if attempt == MAX_DRAWS - 1 or flat < self.flat_probability or self._has_detail(crop):
                break
        return _turned(crop, int(turn * self.symmetries))

    def _has_detail(self, crop: np.ndarray) -> bool:
        return local_detail(crop) >= self.min_detail


def local_detail(crop: np.ndarray) -> float:
    """What a reduction by 4 averages away: the RMS difference of the luma of (H, W, 3) uint8 pixels from the mean of
    its 4 x 4 block, on the [0, 1] scale. Unlike the plain deviation it is small for a smooth gradient and for
    blurred backgrounds, which take up much of a photograph and teach little."""
    height, width = (side - side % DETAIL_BLOCK for side in crop.shape[:2])
    if not height or not width:
        return 0.0
    luma = crop[:height, :width].astype(np.float32) @ (LUMA / LEVELS)
    rows = sum(luma[i::DETAIL_BLOCK] for i in range(DETAIL_BLOCK))  # far faster than a mean over two axes
    means = sum(rows[:, i::DETAIL_BLOCK] for i in range(DETAIL_BLOCK)) / DETAIL_BLOCK ** 2
    return float(max((luma ** 2).mean() - (means ** 2).mean(), 0) ** 0.5)


def _pick(ends: list[float], share: float) -> int:
    """Index of the interval, given by the running sum of their lengths, that `share` in [0, 1) of the sum lies in."""
    return min(int(np.searchsorted(ends, share * ends[-1], side="right")), len(ends) - 1)


def _turned(crop: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the 8 flips and quarter turns of a square: 0 as it is, 1 mirrored."""
    if symmetry & 1:
        crop = crop[:, ::-1]
    if symmetry & 2:
        crop = crop[::-1]
    return crop.transpose(1, 0, 2) if symmetry & 4 else crop


class PublishedCrops(Dataset):
    """The paper's crops, one a picture: short side to 1.25 S (class 0) or S (class 1), centre crop S, random flip.

    A map-style dataset for a `DataLoader` with any number of workers: an item depends only on seed, epoch and index.
    """

    def __init__(self, root: str | os.PathLike, size: int = 512, *, negative_root: str | os.PathLike | None = None,
                 enlarge: float = 1.25, seed: int = 0) -> None:
        """root, negative_root: folders of high- and low-quality pictures, searched recursively.

        Raises FileNotFoundError when a folder is missing or holds no picture, ValueError for bad settings.
        """
        if size < 1 or enlarge < 1:
            raise ValueError(f"size must be positive and enlarge at least 1, got {size} and {enlarge}")
        self.size, self.enlarge, self.seed, self.epoch = size, enlarge, seed, 0
        self.files = [(path, POSITIVE) for path in _some_images(root)]
        if negative_root is not None:
            self.files += [(path, NEGATIVE) for path in _some_images(negative_root)]

    def set_epoch(self, epoch: int) -> None:
        """Choose other flips; call it before the loader starts its workers for the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A crop (3, S, S), float32 in [0, 1], and its class. An unreadable picture is replaced by the next one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} pictures")
        index %= len(self)
        flip = np.random.default_rng((self.seed, self.epoch, index)).random() < 0.5
        return self._load(index, flip)

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` crops of pictures drawn at random: (B, 3, S, S), float32 in [0, 1]. The classes are not returned:
        use one object a class."""
        indices = torch.randint(len(self), (count,), generator=generator).tolist()
        flips = torch.rand(count, generator=generator) < 0.5
        return torch.stack([self._load(index, bool(flip))[0] for index, flip in zip(indices, flips)])

    def _load(self, index: int, flip: bool) -> tuple[Tensor, int]:
        for offset in range(len(self)):
            path, label = self.files[(index + offset) % len(self)]
            try:
                image = read_rgb(path)
            except UNREADABLE as error:
                log.warning("skipped %s: %s", path, error)
                continue
            short_side = round(self.size * (self.enlarge if label == POSITIVE else 1))
            crop = np.array(_centre_crop(image, short_side, self.size))
            pixels = torch.from_numpy(crop[:, ::-1].copy() if flip else crop)
            return pixels.permute(2, 0, 1).contiguous().float().div_(LEVELS), label
        raise FileNotFoundError(f"none of the {len(self)} pictures can be read, e.g. {self.files[0][0]}")


def _some_images(root: str | os.PathLike) -> list[Path]:
    images = find_images(root)
    if not images:
        raise FileNotFoundError(f"no pictures below {root}")
    return images


def _centre_crop(image: Image.Image, short_side: int, size: int) -> Image.Image:
    """Resize the short side (Lanczos), cut the middle square of `size` pixels."""
    factor = short_side / min(image.size)
    width, height = (max(round(side * factor), size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
