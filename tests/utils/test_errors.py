"""What a program says when something goes wrong: one line, and where it was nobody's mistake, where to look."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError, describe, first_line

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
