"""A disk cache of decoded photographs at several scales, so that cutting a crop costs a copy and no JPEG decoding.

Each photograph is decoded once and stored as one `.npy` file a level (level i is reduced 2^i times by averaging),
which is then read through a memory map. A file's key holds the photograph's path, time and size: a changed
photograph gets new files; the folder may be deleted at any time.
"""
from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
# What Pillow raises for damaged, foreign or absurdly large files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
KEY_LENGTH = 24  # hexadecimal digits


def find_images(root: str | os.PathLike) -> list[Path]:
    """All image files below `root`, sorted by path; hidden files and folders are left out.

    Raises FileNotFoundError when the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"folder of pictures {root} not found: "
                                "`python -m dataloader.photos --output trainset/photos` assembles one")
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
                  and not any(part.startswith(".") for part in path.relative_to(root).parts))


def read_rgb(path: Path) -> Image.Image:
    """Decode a picture as RGB, upright, transparent parts on white. Raises one of UNREADABLE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photographs are welcome here
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pictures of more than 8 bits a channel (mode {image.mode}) are not supported")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")


class PyramidCache:
    """Memory-mapped levels of photographs in a cache folder."""

    def __init__(self, folder: str | os.PathLike, num_levels: int = 4) -> None:
        if num_levels < 1:
            raise ValueError(f"num_levels must be at least 1, got {num_levels}")
        self.folder = Path(folder)
        self.num_levels = num_levels

    def level_files(self, photo: Path) -> list[Path]:
        """The `.npy` file of each level (H, W, 3) uint8, decoded and written now where they are missing.

        Raises one of UNREADABLE for a broken photograph.
        """
        status = photo.stat()
        identity = f"{photo.resolve()}|{status.st_mtime_ns}|{status.st_size}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:KEY_LENGTH]
        files = [self.folder / f"{key}.{level}.npy" for level in range(self.num_levels)]
        if not all(file.is_file() for file in files):
            image = read_rgb(photo)
            self.folder.mkdir(parents=True, exist_ok=True)
            for level, file in enumerate(files):
                _write_array(file, np.asarray(image.reduce(2 ** level) if level else image))
        return files


def _write_array(file: Path, array: np.ndarray) -> None:
    """Under a temporary name first, so that a stopped run or a neighbour never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, array)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
