"""Half-done state of one large picture, kept beside its result until that is whole, so that work can go on."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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


class WorkFolder:
    """`.NAME.part` beside a result: window latents, raw pixels, and what is done of both.

    A folder that another run of the same picture, model and settings (`plan`, plain JSON values) left behind is
    continued; any other is cleared. Several ranks may use one folder: rank 0 calls `prepare` before the rest open it.
    """

    PLAN = "plan.json"

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f".{output.name}.part")
        self.open_files: list[FileLatents | Flags] = []

    def prepare(self, plan: dict[str, Any]) -> bool:
        """Make the folder, empty unless it holds the same plan. Returns whether there is something to continue."""
        text = json.dumps(plan, sort_keys=True)
        plan_file = self.path / self.PLAN
        if plan_file.is_file() and plan_file.read_text(encoding="utf-8") == text:
            return True
        self.remove()
        self.path.mkdir(parents=True)
        temporary = plan_file.with_name(f"{self.PLAN}.new")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, plan_file)
        return False

    def latents(self, side: int, windows: int, shape: tuple[int, int, int]) -> FileLatents:
        """Store of the windows' latents after the scale of a side."""
        store = FileLatents(self.path / f"side{side}", windows, shape)
        self.open_files.append(store)
        return store

    def finished_rows(self, rows: int) -> Flags:
        """Which rows of windows have all their pixels in the raw file."""
        flags = Flags(self.path / "rows.done", rows)
        self.open_files.append(flags)
        return flags

    @property
    def pixels(self) -> Path:
        """The raw pixels of the result."""
        return self.path / "pixels.raw"

    def close(self) -> None:
        """Release the files; the folder stays."""
        for file in self.open_files:
            file.close()
        self.open_files.clear()

    def remove(self) -> None:
        """Close and delete it all."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
