"""Where the latents of a picture's windows wait to be merged: memory, or a file that survives an interruption."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class LatentStore(Protocol):
    """Latents (c, N, N) float32 by window number."""

    def __contains__(self, index: int) -> bool: ...

    def __getitem__(self, index: int) -> Tensor: ...

    def __setitem__(self, index: int, latent: Tensor) -> None: ...


class Flags:
    """One byte a number in a file: set or not. Several processes may set different ones at the same time."""

    def __init__(self, path: Path, count: int) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)
        self.count = count
        if os.fstat(self.file).st_size < count:
            os.ftruncate(self.file, count)

    def __contains__(self, index: int) -> bool:
        return os.pread(self.file, 1, index) == b"\1"

    def set(self, index: int) -> None:
        """Mark a number as done."""
        os.pwrite(self.file, b"\1", index)

    def missing(self) -> list[int]:
        """Numbers that are not set."""
        return [index for index, value in enumerate(os.pread(self.file, self.count, 0)) if not value]

    def close(self) -> None:
        """Release the file."""
        os.close(self.file)


class FileLatents:
    """Latents in a file of equal records; read and written in place, never mapped, so that memory stays flat."""

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]) -> None:
        self.shape, self.record = shape, 4 * shape[0] * shape[1] * shape[2]
        self.done = Flags(path.with_name(f"{path.name}.done"), count)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)

    def __contains__(self, index: int) -> bool:
        return index in self.done

    def __getitem__(self, index: int) -> Tensor:
        if index not in self:
            raise KeyError(index)
        data = os.pread(self.file, self.record, index * self.record)
        return torch.frombuffer(bytearray(data), dtype=torch.float32).view(self.shape)

    def __setitem__(self, index: int, latent: Tensor) -> None:
        data = latent.detach().float().cpu().contiguous().numpy().tobytes()
        written = os.pwrite(self.file, data, index * self.record)
        if written != self.record:
            raise OSError(f"only {written} of {self.record} bytes written: is the disk full?")
        self.done.set(index)  # last: a record counts only once it is whole

    def close(self) -> None:
        """Release the files."""
        os.close(self.file)
        self.done.close()
