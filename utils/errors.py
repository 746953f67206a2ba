"""What programs tell people: errors that they meet, each in one line and apart from our own bugs; lines that never end
the work that they speak of; stops by the keyboard or the system."""
from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

# Control characters of ISO 646 and 8859, ends of lines and the marks of Unicode that change a text's direction
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
USED_BY_BARS = ("\n", "\r", "\t", "\x1b[A")  # what progress bars steer a terminal with
PARTS = re.compile(f"({'|'.join(map(re.escape, USED_BY_BARS))})")
DEBUG = "VARSR_DEBUG"  # environment variable: show tracebacks
SIGNALLED = 128  # and the signal's number: the exit code of a stopped program, as shells have it

log = logging.getLogger(__name__)


class UserError(ValueError):
    """Something that was given cannot be used: one line that names the file or flag and says what to do."""

    def __init__(self, text: object) -> None:
        super().__init__(visible(str(text)))


class Terminated(KeyboardInterrupt):
    """The system asks the program to end (SIGTERM); it ends as it does after Ctrl-C."""


def visible(text: str) -> str:
    """Text as one line, with escapes for what would steer a terminal or turn the text around, as names of files may."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def describe(error: BaseException) -> str:
    """An error in one line. One that nobody foresaw is called so, and its traceback goes to the debug log."""
    foreseen = isinstance(error, (UserError, OSError, MemoryError)) or "out of memory" in str(error)
    if foreseen:
        return first_line(error)
    log.debug("unforeseen", exc_info=error)
    return f"unforeseen {type(error).__name__}: {first_line(error)} ({DEBUG}=1 shows where)"


def guarded(program: str, run: Callable[[], int]) -> int:
    """The exit code of `run`; whatever it raises is printed as one line on stderr and gives 1, a stop 130 or 143.

    What it prints never raises (see `tolerant_output`).
    """
    with tolerant_output(), terminable():
        try:
            return run()
        except KeyboardInterrupt as stop:
            print(f"{program}: stopped", file=sys.stderr)
            return exit_code(stop)
        except Exception as error:
            logging.basicConfig(level=log_level(), format="%(message)s")  # does nothing where it was done before
            print(f"{program}: {describe(error)}", file=sys.stderr)
            return 1


def exit_code(stop: KeyboardInterrupt) -> int:
    """Of a program that was stopped."""
    return SIGNALLED + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def _handling(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Within it signals, by number, have these handlers. Elsewhere than in the main thread, which alone can set any,
    all stays as it is."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        # a handler that is None is not Python's, and could not be put back
        before = {number: handler for number in handlers if (handler := signal.getsignal(number)) is not None}
    for number in before:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`, so that what is unfinished is cleared away and what is finished told."""
    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated
    with _handling({signal.SIGTERM: terminate}):
        yield


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Within it stops (Ctrl-C, SIGTERM) raise nothing; their numbers are put into the list."""
    received: list[int] = []
    with _handling(dict.fromkeys((signal.SIGTERM, signal.SIGINT), lambda number, _: received.append(number))):
        yield received


@contextmanager
def unstopped() -> Iterator[None]:
    """Within it stops wait until it ends, so that what it does is done as a whole."""
    received: list[int] = []
    try:
        with stop_requests() as received:
            yield
    finally:
        if received:
            signal.raise_signal(received[0])


class _Tolerant:
    """A text stream that writes what it can: characters it cannot encode and such as steer the terminal are escaped,
    and what nobody takes (a closed pipe, a full disk behind a redirection) is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, escaped where need be; never raises."""
        plain = "".join(part if part in USED_BY_BARS else visible(part) for part in PARTS.split(text))
        for form in (plain, escaped(plain, self._stream.encoding or "ascii")):
            try:
                self._stream.write(form)
            except UnicodeEncodeError:
                continue
            except BrokenPipeError:
                self._let_go()
            except (OSError, ValueError, MemoryError):  # ValueError: the stream is closed
                pass
            break
        return len(text)

    def flush(self) -> None:
        """Flush; never raises."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()
        except (OSError, ValueError, MemoryError):
            pass

    def _let_go(self) -> None:
        """Nobody reads any more: what is still buffered must not fail again when the process ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Within it nothing that is printed or logged raises, whatever the terminal can show and whoever reads it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if stream is None or isinstance(stream, _Tolerant) else _Tolerant(stream)
                              for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def escaped(text: str, encoding: str = "utf-8") -> str:
    """Text that an encoding can hold; the rest, parts of file names that are no text included, as \\x and \\u."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def log_level() -> int:
    """Of the programs: everything where `VARSR_DEBUG` is set."""
    return logging.DEBUG if os.environ.get(DEBUG) else logging.INFO
