"""One large picture by all ranks, step by step, so that an interrupted run can go on where it stopped.

Its half-done state is kept beside its result until that is whole.
"""
from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.varsr import VARSR
from utils.files import replacing
from utils.ranks import Ranks

from .generate import BatchSize, Progress, generate_windows
from .render import render
from .report import Started
from .settings import RestoreSettings


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
        with replacing(plan_file) as temporary:
            temporary.write_text(text, encoding="utf-8")
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


def restore_large(model: VARSR, started: Started, folder: WorkFolder, settings: RestoreSettings, batch: BatchSize,
                  ranks: Ranks, progress: Progress) -> None:
    """Generate the windows, render the rows, write the result: each step by all ranks, the file by the first.

    Steps that the work folder knows as done are left out. What fails on one rank fails on all.
    """
    grid, record = started.tiled.grid, started.record
    begun = time.monotonic()
    # rank 0 says what is missing: another rank may look only after the first new windows are there
    missing = ranks.gather([window.index for window in grid if window.index not in started.tiled.finished])[0]
    own = set(ranks.contiguous(missing))
    progress(len(grid) - len(missing))
    work = [(started.tiled, window) for window in grid if window.index in own]
    ranks.together(lambda: generate_windows(model, work, settings, batch, progress))
    generated = time.monotonic()
    flags = folder.finished_rows(len(started.tiled.decoding.rows))
    rows = ranks.contiguous(ranks.gather(flags.missing())[0])
    ranks.together(lambda: _render_rows(model, started, settings, batch, flags, rows))
    rendered = time.monotonic()
    ranks.together(lambda: ranks.rank or started.result.finish())
    record.generate_seconds, record.render_seconds = generated - begun, rendered - generated
    record.write_seconds = time.monotonic() - rendered


def _render_rows(model: VARSR, started: Started, settings: RestoreSettings, batch: BatchSize, flags: Flags,
                 rows: list[int]) -> None:
    """Render these rows of decoded windows, each up to where the next one starts, and flag what is written."""
    tiled = started.tiled
    edges = [start * tiled.factor for start in tiled.decoding.rows.starts] + [tiled.height]
    for first, last in _runs(rows):
        open_rows = list(range(first, last + 1))
        for top, pixels in render(model, tiled, tiled.finished, settings.color_fix, batch, edges[first],
                                  min(edges[last + 1], tiled.height), settings.generation.fidelity):
            started.result.write_rows(top, pixels)
            while open_rows and edges[open_rows[0] + 1] <= top + pixels.shape[1]:
                flags.set(open_rows.pop(0))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each unbroken run of increasing numbers."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[start], numbers[i - 1]
            start = i
