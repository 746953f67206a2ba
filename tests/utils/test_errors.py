"""What a program says when something goes wrong: one line, and where it was nobody's mistake, where to look."""
from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.errors import Terminated, UserError, describe, escaped, first_line, guarded, tolerant_output, unstopped

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("error", [UserError("--scale 99 is too much\nreally"), FileNotFoundError("a.png is not there"),
                                   RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_mistakes_are_told_as_they_are(error: Exception) -> None:
    assert describe(error) == first_line(error) and "\n" not in describe(error)


@pytest.mark.parametrize("error", [KeyError("blocks"), ValueError("shapes differ"), RuntimeError("sizes"), TypeError()])
def test_our_own_bugs_are_called_so(error: Exception) -> None:
    assert describe(error).startswith(f"unforeseen {type(error).__name__}: ") and "VARSR_DEBUG=1" in describe(error)


def program(error: str, **environment: str) -> subprocess.CompletedProcess:
    code = f"import sys; from utils.errors import UserError, guarded\ndef run(): raise {error}\n" \
           "sys.exit(guarded('a.py', run))"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, **environment})


def test_a_program_ends_with_one_line_and_exit_code_one() -> None:
    for error, line in (("UserError('no such flag')", "a.py: no such flag\n"),
                        ("KeyError('x')", "a.py: unforeseen KeyError: 'x' (VARSR_DEBUG=1 shows where)\n")):
        result = program(error)
        assert (result.returncode, result.stderr, result.stdout) == (1, line, "")


def test_a_traceback_is_shown_on_request_and_only_of_bugs() -> None:
    assert "line 2, in run" in program("KeyError('x')", VARSR_DEBUG="1").stderr
    assert "Traceback" not in program("UserError('x')", VARSR_DEBUG="1").stderr


@pytest.mark.parametrize("stop, code", [("KeyboardInterrupt", 130), ("Terminated", 143)])
def test_a_stop_is_one_line_and_an_exit_code_of_its_own(stop: str, code: int) -> None:
    result = program(f"__import__('utils.errors').errors.Terminated if {stop == 'Terminated'} else KeyboardInterrupt")
    assert (result.returncode, result.stderr) == (code, "a.py: stopped\n")


def test_a_request_to_terminate_is_a_stop() -> None:
    assert guarded("a.py", lambda: os.kill(os.getpid(), signal.SIGTERM) or 0) == 143
    assert issubclass(Terminated, KeyboardInterrupt) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_must_be_whole_is_not_stopped() -> None:
    done = []

    def run() -> int:
        with unstopped():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            done.append("whole")
        done.append("more")
        return 0
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert guarded("a.py", run) == 130 and done == ["whole"]  # the first one counts
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_what_fails_unstopped_fails() -> None:
    with pytest.raises(UserError, match="full"), unstopped():
        raise UserError("full")


def test_threads_do_without_handlers() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: unstopped().__enter__()).result() is None


class Broken(io.StringIO):
    """A stream of an encoding whose writes fail."""

    def __init__(self, error: Exception | None = None, encoding: str = "ascii") -> None:
        super().__init__()
        self.error, self._encoding = error, encoding

    @property
    def encoding(self) -> str:
        return self._encoding

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        text.encode(self._encoding)
        return super().write(text)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("I/O operation on closed file"),
                                   MemoryError(), UnicodeEncodeError("ascii", "x", 0, 1, "always")])
def test_what_cannot_be_said_is_dropped(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(error))
    with tolerant_output():
        print("a line", flush=True)


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Broken(encoding="cp1252"))
    with tolerant_output():
        print("caf\u00e9 \u9e93 \udce9")
    assert terminal.getvalue() == "caf\u00e9 \\u9e93 \\udce9\n"
    assert sys.stdout is terminal and escaped("\udce9") == "\\udce9"
