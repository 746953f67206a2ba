"""Where the pixels of a result wait until it is complete: memory, or a raw file that several processes may fill."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .vips import FORMATS, INTERPRETATIONS, vips


class PixelStore:
    """Pixels (height, width, channels) of uint8 or uint16, written by rows, then read as one picture.

    With a path they lie in that file, which is created or, having the right size, taken over with what it holds.
    It is written with pwrite and read through libvips' window, never mapped whole: the pixels take no memory, and a
    full disk is an OSError.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, path: Path | None = None) -> None:
        self.shape, self.dtype, self.path = shape, np.dtype(dtype), path
        self.row_bytes = shape[1] * shape[2] * self.dtype.itemsize
        self._memory: np.ndarray | None = None
        self._file: int | None = None
        if path is None:
            self._memory = np.zeros(shape, self.dtype)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        size = shape[0] * self.row_bytes
        found = os.fstat(self._file).st_size
        if found not in (0, size):  # of another run; never an empty one, which another process may be filling
            os.ftruncate(self._file, 0)
        if found != size:
            self._reserve(size)

    def _reserve(self, size: int) -> None:
        """Take the room on the disk now: a full disk shows before hours of work, not after."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)
            else:
                os.ftruncate(self._file, size)
        except OSError:
            self.remove()
            raise

    def write(self, top: int, rows: np.ndarray) -> None:
        """Store rows (n, width, channels) from row `top` on. Raises OSError."""
        if self._memory is not None:
            self._memory[top:top + len(rows)] = rows
            return
        data, place = memoryview(np.ascontiguousarray(rows)).cast("B"), top * self.row_bytes
        while data:
            written = os.pwrite(self._file, data, place)
            data, place = data[written:], place + written

    def array(self) -> np.ndarray:
        """All pixels; those of a file are mapped."""
        if self._memory is not None:
            return self._memory
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)

    def picture(self):
        """All pixels as a libvips picture, which reads them as they are needed."""
        height, width, channels = self.shape
        if self._memory is not None:
            picture = vips().Image.new_from_memory(self._memory, width, height, channels, FORMATS[self.dtype])
        else:
            picture = vips().Image.rawload(str(self.path), width, height, channels, format=FORMATS[self.dtype],
                                           access="sequential")
        return picture.copy(interpretation=INTERPRETATIONS[self.dtype][channels])

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Let go of everything, the file included."""
        self.close()
        self._memory = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)
