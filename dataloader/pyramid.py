"""A disk cache of decoded photographs at several scales, so that cutting a crop costs a copy and no JPEG decoding.

Each photograph is decoded once and stored as one `.npy` file a level (level i is reduced 2^i times by averaging),
which is then read through a memory map. A file's key holds the photograph's path, time and size: a changed
photograph gets new files; the folder may be deleted at any time.
"""
from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from .listing import Entry
from .reading import read_entry

KEY_LENGTH = 24  # hexadecimal digits


class PyramidCache:
    """Memory-mapped levels of photographs in a cache folder."""

    def __init__(self, folder: str | os.PathLike, num_levels: int = 4) -> None:
        if num_levels < 1:
            raise ValueError(f"num_levels must be at least 1, got {num_levels}")
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
    """Under a temporary name first, so that a stopped run or a neighbour never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, array)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
