"""Random crops at several scales from cached photographs: the sampler for training from few large pictures.

Each photograph is decoded once and stored as one `.npy` file a level (level i is reduced 2^i times by averaging), which
is then read through a memory map. A file's key holds the photograph's path, time and size: a changed photograph gets
new files; the folder may be deleted at any time. `centre_crops.py` has the paper's recipe for many pictures.
"""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.config import HIGH_QUALITY
from pictures.rgb import BT601
from utils.errors import UserError
from utils.files import replacing

from .entries import UNREADABLE, Entry, Failures, find_entries, read_entry
from .positions import Stream, generator_at, pick, running_sum

log = logging.getLogger(__name__)

KEY_LENGTH = 24  # hexadecimal digits
CACHE_FOLDER = Path(".cache", "photo-pyramids")  # next to the folder of photographs
LEVEL_WEIGHTS = (0.15, 0.35, 0.35, 0.15)  # the full resolution of a photograph is often soft or noisy
UPRIGHT, MIRRORED = 1, 2  # symmetries of crops
MAX_DRAWS = 4  # tries for a crop with detail before a flat one is taken
MAX_LOST = 100  # photographs in a row whose cache cannot be read
LUMA = np.array(BT601, dtype=np.float32)
DETAIL_BLOCK = 4  # pixels
FINE_BLOCK, COARSE_BLOCK = 2, 8  # of `sharpness`
LEVELS = 255.0


class PyramidCache:
    """Memory-mapped levels of photographs in a cache folder."""

    def __init__(self, folder: str | os.PathLike, num_levels: int = 4) -> None:
        if num_levels < 1:
            raise UserError(f"num_levels must be at least 1, got {num_levels}")
        self.folder = Path(folder)
        self.num_levels = num_levels

    def level_files(self, photo: Entry) -> list[Path]:
        """The `.npy` file of each level (H, W, 3) uint8, decoded and written now where they are missing.

        Raises one of `reading.UNREADABLE` for a broken photograph.
        """
        status = photo.path.stat()
        identity = f"{photo.path.resolve()}|{status.st_mtime_ns}|{status.st_size}"
        if photo.member is not None:
            identity += f"|{photo.member}|{photo.offset}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:KEY_LENGTH]
        files = [self.folder / f"{key}.{level}.npy" for level in range(self.num_levels)]
        if not all(file.is_file() for file in files):
            image = read_entry(photo)
            self.folder.mkdir(parents=True, exist_ok=True)
            for level, file in enumerate(files):
                _write_array(file, np.asarray(image.reduce(2 ** level) if level else image))
        return files


def _write_array(file: Path, array: np.ndarray) -> None:
    """So that a stopped run or a neighbour never sees half a file."""
    with replacing(file) as temporary, open(temporary, "wb") as stream:
        np.save(stream, array)


@dataclass(frozen=True, slots=True)
class Level:
    """A cached level of a photograph; sides in pixels."""

    photo: Entry
    file: Path
    height: int
    width: int


class PhotoCrops:
    """Random square crops, flipped and turned, of all listed photographs, at full and reduced scales."""

    def __init__(self, root: str | os.PathLike, crop_size: int, *, cache: str | os.PathLike | None = None,
                 level_weights: Sequence[float] = LEVEL_WEIGHTS, min_detail: float = 0.012,
                 min_sharpness: float = 0.33, flat_probability: float = 0.1, symmetries: int = 8,
                 failures: Failures | None = None) -> None:
        """Decode what is not in the cache yet (about a second for 10 megapixels, once).

        root: a folder, a text file or a shard (`find_entries`). cache: folder for decoded photographs (4 bytes a
        pixel); by default `.cache/photo-pyramids` beside `root`. level_weights: how often level i (reduced 2^i
        times) is drawn; a reduced photograph only counts where its short side is at least twice the crop. min_detail:
        a crop whose `local_detail` is lower is drawn anew (up to 3 times), except with flat_probability, and so is one
        whose `sharpness` is below min_sharpness: what is out of focus teaches nothing about detail. symmetries: 8 for
        all flips and quarter turns, 2 for mirroring alone, 1 for none.
        Broken or too small pictures are skipped, and named and counted in `failures`.

        Raises FileNotFoundError when nothing usable is found, ValueError for bad settings or a bad list.
        """
        if crop_size < 1 or not level_weights or min(level_weights) < 0 or sum(level_weights) <= 0:
            raise UserError(f"crop_size must be positive and level_weights a non-empty row of shares, "
                             f"got {crop_size} and {tuple(level_weights)}")
        root = Path(root)
        self.crop_size, self.flat_probability = crop_size, flat_probability
        self.min_detail, self.min_sharpness = min_detail, min_sharpness
        self.symmetries = symmetries
        self.failures = Failures() if failures is None else failures
        pyramid = PyramidCache(cache or root.resolve().parent / CACHE_FOLDER, len(level_weights))
        levels: list[list[Level]] = [[] for _ in level_weights]
        photos = find_entries(root)
        for photo in photos:
            self._index(photo, pyramid, levels)
        if not any(levels):
            raise FileNotFoundError(f"no picture of at least {crop_size}x{crop_size} pixels below {root} "
                                    f"({len(photos)} pictures looked at, {len(self.failures)} skipped)")
        used = [(weight, files) for weight, files in zip(level_weights, levels) if files and weight > 0]
        if not used:
            raise UserError(f"level_weights {tuple(level_weights)} leave no level of the pictures below {root}")
        self.level_ends = running_sum(weight for weight, _ in used)
        self.levels = [files for _, files in used]
        # by the square root of the area: large photographs more often, but not as much as they have pixels
        self.photo_ends = [running_sum(level.photo.weight * (level.height * level.width) ** 0.5 for level in files)
                            for files in self.levels]
        self.usable = len({level.photo for files in levels for level in files})
        log.info("%d photographs below %s, %d skipped", len(photos), root, len(self.failures))

    def __len__(self) -> int:
        """Photographs to draw from, an epoch."""
        return self.usable

    def _index(self, photo: Entry, pyramid: PyramidCache, levels: list[list[Level]]) -> None:
        try:
            files = pyramid.level_files(photo)
            sides = [np.load(file, mmap_mode="r").shape[:2] for file in files]
        except PermissionError as error:
            raise PermissionError(f"cannot read {photo} or write its cache {pyramid.folder} ({error}): "
                                  "choose a writable folder with `cache`") from error
        except UNREADABLE as error:
            self.failures.add(photo, error)
            return
        usable = 0
        for level, (file, (height, width)) in enumerate(zip(files, sides)):
            if min(height, width) >= self.crop_size * (2 if level else 1):
                levels[level].append(Level(photo, file, height, width))
                usable += 1
        if not usable:
            self.failures.add(photo, f"smaller than a crop of {self.crop_size} pixels")

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """The crop of a position of the endless row of samples, (S, S, 3) uint8, and its class."""
        return self._draw(generator_at(seed, Stream.CROP, position)), HIGH_QUALITY

    def _draw(self, generator: torch.Generator) -> np.ndarray:
        """One crop (S, S, 3) uint8."""
        attempt = lost = 0
        while True:
            level, photo, top, left, flat, turn = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
            which = pick(self.level_ends, level)
            chosen = self.levels[which][pick(self.photo_ends[which], photo)]
            try:
                crop = self._cut(chosen, top, left)
            except UNREADABLE as error:
                self.failures.add(chosen.photo, f"its cache cannot be read any more ({error})")
                lost += 1
                if lost == MAX_LOST:
                    raise FileNotFoundError(f"{lost} cached photographs in a row cannot be read, e.g. {chosen.file}: "
                                            "start again to rebuild the cache") from error
                continue
            attempt += 1
            if attempt == MAX_DRAWS or flat < self.flat_probability or self._has_detail(crop):
                return _turned(crop, int(turn * self.symmetries))

    def _cut(self, level: Level, top: float, left: float) -> np.ndarray:
        """The crop (S, S, 3) whose corner lies at shares of the room there is for it."""
        # mapped anew each time: an open map holds a file handle, and there may be thousands of photographs
        pixels = np.load(level.file, mmap_mode="r")
        size = self.crop_size
        top, left = int(top * (level.height - size + 1)), int(left * (level.width - size + 1))
        return np.asarray(pixels[top:top + size, left:left + size])

    def _has_detail(self, crop: np.ndarray) -> bool:
        return local_detail(crop) >= self.min_detail and sharpness(crop) >= self.min_sharpness


def local_detail(crop: np.ndarray, block: int = DETAIL_BLOCK) -> float:
    """What a reduction by `block` averages away: the RMS difference of the luma of (H, W, 3) uint8 pixels from the
    mean of its block x block, on the [0, 1] scale. Unlike the plain deviation it is small for a smooth gradient and
    for blurred backgrounds, which take up much of a photograph and teach little."""
    height, width = (side - side % block for side in crop.shape[:2])
    if not height or not width:
        return 0.0
    luma = crop[:height, :width].astype(np.float32) @ (LUMA / LEVELS)
    rows = sum(luma[i::block] for i in range(block))  # far faster than a mean over two axes
    means = sum(rows[:, i::block] for i in range(block)) / block ** 2
    return float(max((luma ** 2).mean() - (means ** 2).mean(), 0) ** 0.5)


def sharpness(crop: np.ndarray) -> float:
    """How much of the detail that a reduction by 8 takes away one by 2 takes already, 0 to 1: unlike the detail itself
    it tells a strong but blurred edge from a sharp one. About 0.25 for pictures out of focus, 0.45 for good ones."""
    coarse = local_detail(crop, COARSE_BLOCK)
    return local_detail(crop, FINE_BLOCK) / coarse if coarse else 0.0


def _turned(crop: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the 8 flips and quarter turns of a square: 0 as it is, 1 mirrored."""
    if symmetry & 1:
        crop = crop[:, ::-1]
    if symmetry & 2:
        crop = crop[::-1]
    return crop.transpose(1, 0, 2) if symmetry & 4 else crop
