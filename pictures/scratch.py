"""Where the pixels of a result wait until it is complete: memory, or a file that several processes may fill."""
from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import numpy as np

from .formats import FORMATS, INTERPRETATIONS, vips
from .tiff import LONG8, SHORT, Entry, Layout, directory_bytes

STRIP_BYTES = 4 * 2 ** 20
LAYOUT = Layout("<" if sys.byteorder == "little" else ">", big=True)
PIXELS_START = 16  # behind the header


class PixelStore:
    """Pixels (height, width, channels) of uint8 or uint16, written by rows, then read as one picture.

    With a path they lie in that file, an uncompressed BigTIFF, which is created or, having the right size, taken over
    with what it holds. It is written and read in pieces, never mapped whole: the pixels take no memory, and a full
    disk is an OSError.
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
        end = (PIXELS_START + shape[0] * self.row_bytes + 1) // 2 * 2
        directory = self._directory(end)
        size, found = end + len(directory), os.fstat(self._file).st_size
        if found not in (0, size):  # of another run; never an empty one, which another process may be filling
            os.ftruncate(self._file, 0)
        if found != size:
            self._create(size, end, directory)

    def _create(self, size: int, end: int, directory: bytes) -> None:
        """Take the room on the disk now: a full disk shows before hours of work, not after."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)
            else:
                os.ftruncate(self._file, size)
            mark = b"II" if LAYOUT.order == "<" else b"MM"
            self._put(0, mark + struct.pack(LAYOUT.order + "HHHQ", 43, 8, 0, end))
            self._put(end, directory)
        except OSError:
            self.remove()
            raise

    def _directory(self, end: int) -> bytes:
        """The TIFF directory of the pixels, to stand behind them."""
        height, width, channels = self.shape
        rows = max(STRIP_BYTES // self.row_bytes, 1)
        tops = range(0, height, rows)
        alpha = channels in (2, 4)
        values = {
            256: (LONG8, width), 257: (LONG8, height), 258: (SHORT, *[8 * self.dtype.itemsize] * channels),
            259: (SHORT, 1), 262: (SHORT, 2 if channels > 2 else 1),  # not compressed; RGB or black is 0
            273: (LONG8, *(PIXELS_START + top * self.row_bytes for top in tops)), 277: (SHORT, channels),
            278: (LONG8, rows), 279: (LONG8, *(min(rows, height - top) * self.row_bytes for top in tops)),
            **({338: (SHORT, 2)} if alpha else {}),  # not multiplied into the colours
        }
        entries = {tag: Entry.numbers(LAYOUT, *numbers) for tag, numbers in values.items()}
        return directory_bytes({}, entries, end, LAYOUT)

    def write(self, top: int, rows: np.ndarray) -> None:
        """Store rows (n, width, channels) from row `top` on. Raises OSError."""
        if self._memory is not None:
            self._memory[top:top + len(rows)] = rows
            return
        self._put(PIXELS_START + top * self.row_bytes, np.ascontiguousarray(rows))

    def _put(self, place: int, data: bytes | np.ndarray) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self._file, rest, place)
            rest, place = rest[written:], place + written

    def array(self) -> np.ndarray:
        """All pixels in memory."""
        if self._memory is not None:
            return self._memory
        count = int(np.prod(self.shape))
        return np.fromfile(self.path, self.dtype, count, offset=PIXELS_START).reshape(self.shape)

    def picture(self):
        """All pixels as a libvips picture, which reads them as they are needed."""
        if self._memory is None:
            return vips().Image.tiffload(str(self.path), access="sequential")
        height, width, channels = self.shape
        picture = vips().Image.new_from_memory(self._memory, width, height, channels, FORMATS[self.dtype])
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
