"""Inputs of a fuzz run, read in a process of its own that is watched: `Watched`, and `Finding` for what went wrong."""
from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKER = "tests.security.fuzz_worker"
HANG = 5.0  # seconds of the processor that a file may take
STUCK = 60.0  # seconds by the clock, of a process that waits for something; more than HANG: the machine may be busy
MEMORY = 300 * 2 ** 20  # bytes that a file may take above its picture's own size
START = 120.0  # seconds to import everything in
LOOK = 0.2  # seconds between looks at a process
FRAMES_TOLD = 6  # of a process that dies
OWN_FRAME = re.compile(r":\d+( in )")  # without the number of the line: one function, one cause
QUIET = {"OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "VIPS_WARNING": "1", "PYTHONUNBUFFERED": "1",
         "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True)
class Input:
    """A file to be read: `name` with `data`, and the files that lie beside it. reader: of `fuzz_worker.READERS`."""

    kind: str
    reader: str
    name: str
    data: bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)
    origin: str = ""  # how it was made

    def write(self, folder: Path) -> Path:
        """The files in a new folder; the path of the one to read."""
        folder.mkdir(parents=True)
        for name, data in (*self.beside.items(), (self.name, self.data)):
            (folder / name).write_bytes(data)
        return folder / self.name


@dataclass(frozen=True)
class Answer:
    """What came of an input.

    outcome: ok, refused (by the one-line error), or a finding: raised (another error), memory, hang, crash. frames: the
    deepest first. seconds: of the processor. peak: bytes above what was in use before. picture: bytes of what was read.
    """

    outcome: str
    text: str = ""
    frames: tuple[str, ...] = ()
    seconds: float = 0.0
    peak: int = 0
    picture: int = 0

    @property
    def is_finding(self) -> bool:
        """Whether this must not be."""
        return self.outcome not in ("ok", "refused")

    @property
    def cause(self) -> str:
        """Findings of one cause have the same text here: what happened, and the deepest place in our own code."""
        ours = [OWN_FRAME.sub(r"\1", frame) for frame in self.frames if not frame.startswith(("/", "<", "tests/"))]
        what = self.text.partition(":")[0] if self.outcome == "raised" else self.outcome
        return f"{what} at {(ours or ['an unknown place'])[0]}" if self.outcome != "memory" else what

    def __str__(self) -> str:
        return (f"{self.outcome}: {self.text} ({self.seconds:.1f} s, {self.peak / 2 ** 20:.0f} MB, the picture "
                f"{self.picture / 2 ** 20:.0f} MB)" + "".join(f"\n    {frame}" for frame in self.frames))


class Watched:
    """A process that reads files one by one and is started anew when it dies or hangs. Use it in a `with` block."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._process: subprocess.Popen | None = None
        self._errors = self.folder / "stderr"
        self._count = 0

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, given: Input) -> Answer:
        """Read an input; nothing of it is left on the disk."""
        self._count += 1
        folder = self.folder / f"input-{self._count}"
        path = given.write(folder)
        try:
            return self.read_path(given.reader, path)
        finally:
            shutil.rmtree(folder)

    def read_path(self, reader: str, path: Path) -> Answer:
        """Read a file that is there."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        return self._asked(reader, path)

    def _start(self) -> None:
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER], cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **QUIET})
        first = Input("ppm", "picture", "first.ppm", b"P5 1 1 255\n\0")
        path = first.write(self.folder / f"first-{time.monotonic_ns()}")
        begun = self._asked(first.reader, path, START)
        shutil.rmtree(path.parent)
        if begun.outcome != "ok":
            raise RuntimeError(f"the process that reads does not start: {begun}\n{self._errors.read_text()}")

    def _asked(self, reader: str, path: Path, most: float | None = None) -> Answer:
        """most: seconds of the processor that may be taken."""
        most, longest = (HANG, STUCK) if most is None else (most, most)
        process = self._process
        before, started = self._processor_time(), time.monotonic()
        try:
            process.stdin.write(f"{reader}\t{path}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            return self._crash(started)
        while not select.select([process.stdout], [], [], LOOK)[0]:
            seconds = time.monotonic() - started
            if self._processor_time() - before > most or seconds > longest:
                return self._hang(seconds)
        line = process.stdout.readline()
        if not line:
            return self._crash(started)
        told = json.loads(line)
        told["frames"] = tuple(told["frames"])
        found = Answer(**told)
        worse = "hang" if found.seconds > most else "memory" if found.peak - found.picture > MEMORY else None
        if worse is None or found.is_finding:
            return found
        return replace(found, outcome=worse, text=f"was {found.outcome} {found.text}".rstrip())

    def _processor_time(self) -> float:
        """Seconds that the process has computed."""
        try:
            with open(f"/proc/{self._process.pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # it has died, or this is no Linux
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _hang(self, seconds: float) -> Answer:
        self._process.send_signal(signal.SIGABRT)  # faulthandler tells where it was
        self._end()
        return Answer("hang", "", self._last_words(), seconds)

    def _crash(self, started: float) -> Answer:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Answer("crash", name, self._last_words(), time.monotonic() - started)

    def _last_words(self) -> tuple[str, ...]:
        """Frames of the thread that was at work, the deepest first: a few, and those of our own files."""
        said = self._errors.read_text(errors="replace")
        stack = [line.strip() for line in said.rpartition("Current thread")[2].splitlines()]
        frames = [line.replace('File "', "").replace('", line ', ":").replace(f"{ROOT}/", "")
                  for line in stack if line.startswith("File ")]
        return tuple(frame for place, frame in enumerate(frames) if place < FRAMES_TOLD or frame[0] not in "/<"
                     ) or tuple(said.splitlines()[-FRAMES_TOLD:])

    def _end(self) -> None:
        if self._process is None:
            return
        try:
            self._process.stdin.close()
            self._process.wait(timeout=2)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process = None
