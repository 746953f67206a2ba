"""What visitors upload and are given lies in one private folder, which has a bound and is emptied again."""
from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import UserError
from utils.files import PRIVATE

MAX_AGE = 3600.0  # seconds: what is older goes
UPLOAD_SECONDS = 600.0  # an upload that has not got further for so long was broken off
HASH = re.compile(r"[0-9a-f]{64}")  # of a file: the name of the folder that gradio puts it into


@contextmanager
def page_folder(parent: str | None) -> Iterator[tuple[Path, Path]]:
    """Two new folders that only their user may look into, for what is served and what is not, gone at the end with all
    that is in them. parent: where to make the first, None for the system's place for temporary files."""
    if parent:
        os.makedirs(parent, PRIVATE, exist_ok=True)
    # the second stays in the system's place: from elsewhere gradio refuses to give anything out
    with tempfile.TemporaryDirectory(prefix="varsr_page_", dir=parent or None, ignore_cleanup_errors=True) as served, \
            tempfile.TemporaryDirectory(prefix="varsr_work_", ignore_cleanup_errors=True) as work:
        yield Path(served).resolve(), Path(work).resolve()


def is_upload(folder: Path, path: object) -> bool:
    """Whether a path is that of a file which was uploaded into gradio's folder or given out, and of nothing else."""
    if not isinstance(path, str):
        return False
    try:
        real = os.path.realpath(path)
    except ValueError:  # characters that no path has
        return False
    parent = os.path.dirname(real)
    return (os.path.dirname(parent) == os.path.realpath(folder) and bool(HASH.fullmatch(os.path.basename(parent)))
            and os.path.isfile(real))


class Uploads:
    """The files in gradio's folder: how many bytes they take, and which of them there are.

    known: sets of paths in which gradio remembers them.
    """

    def __init__(self, folder: Path, max_bytes: int, known: Iterable[set[str]] = ()) -> None:
        self.folder, self.max_bytes, self.known = folder, max_bytes, known
        self._lock, self._coming = threading.Lock(), 0
        self._kept: set[Path] = set()

    def keep(self) -> None:
        """What lies there now stays: the examples."""
        self._kept = set(self._files())

    def expect(self, size: int) -> None:
        """So many bytes are about to be uploaded; `done` says when they are there. The oldest files go where there is
        no room. Raises UserError where that does not help."""
        with self._lock:
            coming = self._coming + size
            if self.sweep(coming) + coming > self.max_bytes:
                raise UserError("there is no room for more files at the moment: try again in a while")
            self._coming = coming

    def done(self, size: int) -> None:
        """An upload has ended, well or not."""
        with self._lock:
            self._coming -= size

    def sweep(self, room: int = 0) -> int:
        """Remove old files, and more of them, the oldest first, until `room` bytes are free; the bytes that are
        taken then."""
        now = time.time()
        found = sorted((max(state.st_mtime, state.st_ctime), state.st_size, path)
                       for path, state in self._files().items() if path not in self._kept)
        taken = sum(size for _, size, _ in found)
        for changed, size, path in found:
            is_whole = path.parent != self.folder
            if now - changed > (MAX_AGE if is_whole else UPLOAD_SECONDS) or (
                    taken + room > self.max_bytes and (is_whole or not self._coming)):
                self._remove(path)
                taken -= size
        return taken

    def _files(self) -> dict[Path, os.stat_result]:
        """Files in their place and, beside their folders, those of uploads under way or broken off."""
        found = {}
        for outer in _entries(self.folder):
            for entry in _entries(outer.path) if HASH.fullmatch(outer.name) else (outer,):
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        found[Path(entry.path)] = entry.stat(follow_symlinks=False)
        return found

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        for paths in self.known:
            paths.discard(str(path))
        if path.parent != self.folder:
            with suppress(OSError):  # something else of the same hash
                path.parent.rmdir()


def _entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
