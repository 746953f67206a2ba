"""Memory given back to the system while weights are converted.

A mapped weight file costs memory as it is read and keeps it until the last of its tensors is gone. A loader that has
converted a tensor can give its pages back at once, so that no full copy in the file's type stays beside the model.
"""
from __future__ import annotations

import ctypes
import mmap
from os import PathLike
from pathlib import Path

from torch import Tensor

SUFFIX = ".safetensors"
MAPS = Path("/proc/self/maps")  # Linux; elsewhere nothing is released, and the system reclaims pages under pressure


class MappedFile:
    """The places where a weight file is mapped into this process, or without a path every safetensors file."""

    def __init__(self, path: str | PathLike | None = None) -> None:
        self.ranges: list[tuple[int, int]] = []
        if not hasattr(mmap, "MADV_DONTNEED") or not MAPS.exists():
            return
        wanted = None if path is None else str(Path(path).resolve())
        for line in MAPS.read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and (fields[5] == wanted or wanted is None and fields[5].endswith(SUFFIX)):
                start, end = fields[0].split("-")
                self.ranges.append((int(start, 16), int(end, 16)))

    def release(self, tensor: Tensor) -> None:
        """Give back the memory of an unmodified tensor of this file; touching it reads the file's pages again.

        Does nothing to a tensor elsewhere in memory.
        """
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        if tensor.is_contiguous() and any(low <= start and end <= high for low, high in self.ranges):
            start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: neighbours share the outer ones
            end = end // mmap.PAGESIZE * mmap.PAGESIZE
            if end > start:
                advise = ctypes.CDLL(None).madvise
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(mmap.MADV_DONTNEED))
