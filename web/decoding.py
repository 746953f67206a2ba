"""Pictures of strangers are decoded in a child process, which may run out of memory or time, or crash, alone.

The child is forked off a server that has imported everything, so it is there at once. It answers by files of raw
samples and plain JSON, and what it says is checked: nothing of it is unpickled.
"""
from __future__ import annotations

import base64
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import repeat
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch

from pictures.file_reader import Metadata
from pictures.formats import ImageError
from pictures.picture import Picture, read_picture
from utils.errors import UserError, visible
from utils.flags import set_up_logging

if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

ROOT, SEARCH_PATH = Path(__file__).resolve().parent.parent, "PYTHONPATH"

# What decoding takes on top of the process as it starts: libraries and stacks of threads, and for each pixel 16-bit
# RGBA five times over. Measured with 16 million pixels: 608 MB for a 16-bit TIFF with a profile and hidden pixels.
SPARE_BYTES, BYTES_PER_PIXEL = 2 ** 28, 40
SECONDS, SECONDS_PER_MEGAPIXEL = 30.0, 2.0  # of the largest picture; the larger one counts
ORPHAN_SECONDS = 10.0  # how much longer a child lives whose server has vanished
THREADS = 2  # of libvips: every one has a stack, which counts
POLL_SECONDS = 0.05
SOCKET = "AF_UNIX"  # in the error of a path that is too long for one
DEPTHS = {"uint8": np.uint8, "uint16": np.uint16}
ANSWER, COLOR, ALPHA, OUTPUT = "answer.json", "color", "alpha", "output"
MAX_ANSWER = 2 ** 26  # bytes: metadata
MAX_OUTPUT = 2 ** 14  # bytes of warnings that reach the log
NO_ANSWER = (OSError, ValueError, TypeError, LookupError, RecursionError)  # what reading one raises that is none
FORMAT = re.compile(r"[a-z0-9]{1,8}")
DATA_OF_PROCESS = re.compile(r"^VmData:\s*(\d+) kB$", re.MULTILINE)


class Decoder:
    """Reads pictures, each in a child process of its own, whose files are in `folder` for a moment, None for the
    system's place. seconds: how long one may take, or None for what the largest one needs."""

    def __init__(self, max_pixels: int, folder: Path | None = None, seconds: float | None = None) -> None:
        self.max_pixels, self.folder = max_pixels, folder
        self.seconds = max(SECONDS, SECONDS_PER_MEGAPIXEL * max_pixels / 1e6) if seconds is None else seconds
        self.memory = SPARE_BYTES + BYTES_PER_PIXEL * max_pixels
        self._lock = threading.Lock()  # multiprocessing looks after all children whenever it starts one
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload([__name__])

    def start(self) -> None:
        """Let the libraries be imported, beside whatever else is done: otherwise the first picture waits for them.

        Raises UserError where the server of children has no place for its socket.
        """
        if self._context.get_start_method() == "forkserver":
            from multiprocessing import forkserver
            try:
                with _importable():
                    forkserver.ensure_running()
            except OSError as error:
                if SOCKET not in str(error):
                    raise
                raise UserError(f"{tempfile.gettempdir()}: too long a name for a socket in it: set TMPDIR to a shorter "
                                "one") from error

    def read(self, path: Path, check: Callable[[], None] = lambda: None) -> Picture:
        """What `read_picture` reads. `check` is called all the time; when it raises, the child ends at once.

        Raises ImageError, one line with the file, for whatever is wrong with the picture or happens to the child.
        """
        with tempfile.TemporaryDirectory(prefix="varsr_picture_", dir=self.folder) as name:
            folder = Path(name)
            process = self._context.Process(target=_decode, daemon=True, args=(
                str(path), name, self.max_pixels, self.memory, self.seconds + ORPHAN_SECONDS))
            with self._lock:
                process.start()
            try:
                self._follow(process.sentinel, path, check)
            finally:
                with self._lock:
                    if process.is_alive():
                        process.kill()
                    process.join()
                    ended = process.exitcode
                    process.close()
                _log_output(folder / OUTPUT)
            try:
                return _result(folder, self.max_pixels)
            except ImageError:
                raise
            except NO_ANSWER as error:
                how = f"crashed: signal {-ended}" if ended < 0 else "ended early"
                raise ImageError(f"{path}: cannot be read (the program that reads it {how})") from error

    def _follow(self, sentinel: int, path: Path, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + self.seconds
        while not wait([sentinel], POLL_SECONDS):
            check()
            if time.monotonic() > deadline:
                raise ImageError(f"{path}: takes longer than {self.seconds:g} s to read")


@contextmanager
def _importable() -> Iterator[None]:
    """Within it new programs find our modules from every folder: not all Pythons give the server our search path."""
    before = os.environ.get(SEARCH_PATH)
    os.environ[SEARCH_PATH] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ[SEARCH_PATH]
        else:
            os.environ[SEARCH_PATH] = before


def _decode(path: str, folder: str, max_pixels: int, memory: int, seconds: float) -> None:
    """What the child does."""
    with open(os.path.join(folder, OUTPUT), "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    set_up_logging()
    _limit_self(memory, seconds)
    try:
        answer = _described(read_picture(path, max_pixels), Path(folder))
    except ImageError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"{path}: reading it takes more memory than {memory / 1e6:.0f} MB"}
    Path(folder, ANSWER).write_text(json.dumps(answer, default=_text_of), encoding="utf-8")


def _limit_self(memory: int, seconds: float) -> None:
    """Memory that can be written to, files and time, where the system has such limits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides
    os.environ["VIPS_CONCURRENCY"] = str(THREADS)
    torch.set_num_threads(THREADS)
    if sys.platform == "win32":
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, memory)
    status = Path("/proc/self/status")  # elsewhere the limit is not kept or what is taken is not known
    found = DATA_OF_PROCESS.search(status.read_text()) if status.exists() else None
    if found is not None:
        _lower(resource.RLIMIT_DATA, int(found[1]) * 1024 + memory)


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _described(picture: Picture, folder: Path) -> dict:
    """A picture without its samples, which go into files."""
    picture.color.tofile(folder / COLOR)
    if picture.alpha is not None:
        picture.alpha.tofile(folder / ALPHA)
    return {"shape": picture.color.shape, "depth": picture.color.dtype.name, "alpha": picture.alpha is not None,
            "format": picture.format, "metadata": asdict(picture.metadata)}


def _result(folder: Path, max_pixels: int) -> Picture:
    """The child's picture. Raises ImageError for its error, ValueError and the like for an answer that is none."""
    if (folder / ANSWER).stat().st_size > MAX_ANSWER:
        raise ValueError("too long an answer")
    answer = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
    if "error" in answer:
        raise ImageError(str(answer["error"]))
    height, width, channels = (_checked(side, int) for side in answer["shape"])
    if height < 1 or width < 1 or height * width > max_pixels or channels not in (1, 3):
        raise ValueError(f"not a picture's shape: {answer['shape']}")
    if not FORMAT.fullmatch(answer["format"]):
        raise ValueError("no suffix")
    color = _samples(folder / COLOR, answer["depth"], (height, width, channels))
    alpha = _samples(folder / ALPHA, answer["depth"], (height, width)) if answer["alpha"] is True else None
    metadata = answer["metadata"]
    hints = typing.get_type_hints(Metadata)
    fields = {name: _checked(metadata[name], hint) for name, hint in hints.items()}
    return Picture(color, alpha, channels == 1, Metadata(**fields), answer["format"])


def _samples(path: Path, depth: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.fromfile(path, DEPTHS[depth], math.prod(shape)).reshape(shape)


def _checked(value: object, hint: object) -> object:
    """A value of JSON as a type hint has it: numbers, bytes, and tuples of them. Raises ValueError."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return None if value is None else _checked(value, next(kind for kind in inner if kind is not types.NoneType))
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        kinds = repeat(inner[0], len(value)) if inner[-1] is Ellipsis else inner
        return tuple(_checked(one, kind) for one, kind in zip(value, kinds, strict=True))
    if hint is bytes and isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if hint is float and isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if hint in (int, str) and type(value) is hint:
        return value
    raise ValueError(f"{hint} expected")


def _log_output(path: Path) -> None:
    """What the child printed and logged."""
    if path.exists():
        with open(path, "rb") as output:
            for line in output.read(MAX_OUTPUT).decode("utf-8", "replace").splitlines():
                log.warning("%s", visible(line))
