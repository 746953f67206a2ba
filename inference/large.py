"""One large picture by all ranks, step by step, so that an interrupted run can go on where it stopped.

Its half-done state is kept beside its result until that is whole.
"""
from __future__ import annotations

import ctypes
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.varsr import VARSR
from utils.errors import UserError
from utils.files import (
    create,
    name_beside,
    no_links,
    private_folder,
    read_at,
    replacing,
    temporary_beside,
    write_at,
)
from utils.ranks import Ranks

from .generate import BatchSize, Progress, generate_windows
from .products import write_rows
from .report import Started
from .settings import RestoreSettings

FRESH_SECONDS = 10  # a lock that is being written
LOCK_BYTES = 4096  # more than one has
SYNCHRONIZE, WAIT_TIMEOUT, ACCESS_DENIED = 0x10_0000, 258, 5  # of Windows: a right, an answer, an error
STARTED_FIELD = 19  # behind the name, which is the second


class Flags:
    """One byte a number in a file: set or not. Several processes may set different ones at the same time."""

    def __init__(self, path: Path, count: int) -> None:
        self.file = no_links(path, os.O_RDWR | os.O_CREAT)
        self.count = count
        if os.fstat(self.file).st_size < count:
            os.ftruncate(self.file, count)

    def __contains__(self, index: int) -> bool:
        return read_at(self.file, 1, index) == b"\1"

    def set(self, index: int) -> None:
        """Mark a number as done."""
        write_at(self.file, b"\1", index)

    def missing(self) -> list[int]:
        """Numbers that are not set."""
        return [index for index, value in enumerate(read_at(self.file, self.count, 0)) if not value]

    def close(self) -> None:
        """Release the file."""
        os.close(self.file)


@dataclass(frozen=True)
class Owner:
    """A process, told from a later one of the same number by when it started (clock ticks after the machine's start;
    0 where the system does not say)."""

    host: str
    process: int
    started: int

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @classmethod
    def this_process(cls) -> Owner:
        """Of whoever asks."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()))

    @classmethod
    def of(cls, text: str) -> Owner | None:
        """As a lock holds it; None where it holds something else, or is not written to its end."""
        try:
            fields = json.loads(text)
            return cls(str(fields["host"]), int(fields["process"]), int(fields["started"]))
        except (ValueError, TypeError, KeyError):
            return None

    def is_running(self) -> bool:
        """Whether it still runs; processes of other machines cannot be asked and count as running."""
        if self.host != socket.gethostname():
            return True
        return _exists(self.process) and _started(self.process) == self.started


def _exists(process: int) -> bool:
    """Whether there is a process of this number."""
    if hasattr(ctypes, "WinDLL"):
        return _exists_on_windows(process)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # of another user
    return True


def _exists_on_windows(process: int) -> bool:
    """There os.kill would send it Ctrl-C, which is what 0 stands for."""
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(SYNCHRONIZE, False, ctypes.c_uint32(process))
    if handle is None:
        return ctypes.get_last_error() == ACCESS_DENIED  # of another user
    try:
        return kernel.WaitForSingleObject(ctypes.c_void_p(handle), 0) == WAIT_TIMEOUT
    finally:
        kernel.CloseHandle(ctypes.c_void_p(handle))


def _started(process: int) -> int:
    """When a process started, by Linux's proc(5), field 22."""
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return int(line.rpartition(")")[2].split()[STARTED_FIELD])
    except (OSError, ValueError, IndexError):
        return 0


class FileLatents:
    """Latents, or codes, in a file of equal records; read and written in place, never mapped, so that memory stays
    flat."""

    def __init__(self, path: Path, count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype, self.record = shape, dtype, dtype.itemsize * math.prod(shape)
        self.done = Flags(path.with_name(f"{path.name}.done"), count)
        self.file = no_links(path, os.O_RDWR | os.O_CREAT)

    def __contains__(self, index: int) -> bool:
        return index in self.done

    def __getitem__(self, index: int) -> Tensor:
        if index not in self:
            raise FileNotFoundError(f"window {index} is missing in the work folder: was it removed while it was used?")
        data = read_at(self.file, self.record, index * self.record)
        return torch.frombuffer(bytearray(data), dtype=self.dtype).view(self.shape)

    def __setitem__(self, index: int, latent: Tensor) -> None:
        data = latent.detach().to("cpu", self.dtype).contiguous().numpy().tobytes()
        written = write_at(self.file, data, index * self.record)
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
    continued; any other is cleared. It belongs to one run at a time: its file `lock` says which. Several ranks of that
    run may use one folder: rank 0 calls `prepare` before the rest open it. It is open to its user alone, and only such
    a folder is continued: in a folder that others may write into they could have put anything in its place.
    """

    PLAN, LOCK = "plan.json", "lock"

    def __init__(self, output: Path) -> None:
        self.path = name_beside(output, ".part")
        self.open_files: list[FileLatents | Flags] = []
        self.owned = False

    def prepare(self, plan: dict[str, Any]) -> bool:
        """Make the folder, empty unless it holds the same plan. Returns whether there is something to continue.

        Raises UserError while another run works in it, and where somebody else's folder or file has its name.
        """
        trusted = self._acquire()
        text = json.dumps(plan, sort_keys=True)
        plan_file = self.path / self.PLAN
        if trusted and plan_file.is_file() and plan_file.read_text(encoding="utf-8", errors="replace") == text:
            return True
        self._clear()
        with replacing(plan_file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return False

    def _clear(self) -> None:
        """Delete what is in the folder, but not the lock."""
        for old in self.path.iterdir() if self.path.is_dir() else ():
            if old.name != self.LOCK:
                old.unlink(missing_ok=True)

    def _acquire(self) -> bool:
        """Make the folder this run's own. Returns whether nobody else can have written into it."""
        lock, trusted = self.path / self.LOCK, True
        while not self.owned:
            try:
                trusted = private_folder(self.path) and trusted
                descriptor = create(lock)
            except FileExistsError:
                self._retire(lock)
                continue
            except FileNotFoundError:  # the run before has just removed its folder
                continue
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(Owner.this_process().__dict__, file)
            self.owned = True
        return trusted

    def _retire(self, lock: Path) -> None:
        """Take away the lock of a run that has ended. Raises UserError where it has not."""
        try:
            with open(lock, encoding="utf-8", errors="replace", opener=no_links) as file:
                text, age = file.read(LOCK_BYTES), time.time() - os.fstat(file.fileno()).st_mtime
            owner = Owner.of(text)
            if owner.is_running() if owner is not None else age < FRESH_SECONDS:
                raise UserError(f"{self.path}: {owner or 'another run'} is working on this picture: wait for it, or "
                                f"choose another --output (if no such run is there, delete {lock})")
            retired = temporary_beside(lock)
            os.rename(lock, retired)  # of several runs that see it, one succeeds
            retired.unlink()
        except FileNotFoundError:
            pass  # another run was faster

    def latents(self, side: int, windows: int, shape: tuple[int, int, int]) -> FileLatents:
        """Store of the windows' latents after the scale of a side."""
        return self.maps(f"side{side}", windows, shape)

    def maps(self, name: str, windows: int, shape: tuple[int, int, int]) -> FileLatents:
        """Store of the windows' maps of a name."""
        store = FileLatents(self.path / name, windows, shape)
        self.open_files.append(store)
        return store

    def codes(self, windows: int, tokens: int, dtype: torch.dtype) -> FileLatents:
        """Store of the windows' codes of all scales."""
        store = FileLatents(self.path / "codes", windows, (tokens,), dtype)
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

    @property
    def errors(self) -> Path:
        """The raw pixels of the map of its errors."""
        return self.path / "errors.raw"

    def close(self) -> None:
        """Let go of the files; the folder stays, and stays this run's."""
        for file in self.open_files:
            file.close()
        self.open_files.clear()

    def leave(self) -> None:
        """Let go of it all, for a later run to go on."""
        self.close()
        if self.owned:
            (self.path / self.LOCK).unlink(missing_ok=True)
            self.owned = False

    def remove(self) -> None:
        """Close and delete it all; a folder of another run stays."""
        self.close()
        if self.owned:
            self._clear()
            self.leave()
            with suppress(OSError):  # the next run is in it already
                self.path.rmdir()


def restore_large(model: VARSR, started: Started, folder: WorkFolder, settings: RestoreSettings, batch: BatchSize,
                  ranks: Ranks, progress: Progress) -> None:
    """Generate the windows, render the rows: each step by all ranks.

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
    count = len(started.tiled.decoding.rows)
    flags = folder.finished_rows(count)
    sums = started.error and folder.maps("inputs", count, (started.error.map.inputs + 1,))
    rows = ranks.contiguous(ranks.gather(flags.missing())[0])
    ranks.together(lambda: _render_rows(model, started, settings, batch, flags, rows, sums))
    record.generate_seconds, record.render_seconds = generated - begun, time.monotonic() - generated
    if flags.missing():
        raise FileNotFoundError("rows are missing in the work folder: was it removed while it was used?")
    if started.error is not None:
        started.error.map.merge(sums[row] for row in range(count))


def _render_rows(model: VARSR, started: Started, settings: RestoreSettings, batch: BatchSize, flags: Flags,
                 rows: list[int], sums: FileLatents | None) -> None:
    """Render these rows of decoded windows, each up to where the next one starts, and flag what is written. What the
    result takes from an earlier one is not rendered. sums: keep what the map of errors saw in each row."""
    tiled, result = started.tiled, started.result

    def done(row: int) -> None:
        if sums is not None:
            sums[row] = started.error.map.take()
        flags.set(row)
    edges = [start * tiled.factor for start in tiled.decoding.rows.starts] + [tiled.height]
    for first, last in _runs(rows):
        open_rows = list(range(first, last + 1))
        begin, end = max(edges[first], result.first), min(edges[last + 1], result.last)
        written = write_rows(model, tiled, settings, batch, result, started.error, begin, end) if begin < end else ()
        for until in written:
            while open_rows and edges[open_rows[0] + 1] <= until:
                done(open_rows.pop(0))
        for row in open_rows:  # of an earlier result
            done(row)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each unbroken run of increasing numbers."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[start], numbers[i - 1]
            start = i
