"""Errors that people meet: what was given and cannot be used, kept apart from our own bugs, each in one line."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

DEBUG = "VARSR_DEBUG"  # environment variable: show tracebacks

log = logging.getLogger(__name__)


class UserError(ValueError):
    """Something that was given cannot be used: one line that names the file or flag and says what to do."""


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
    """The exit code of `run`; whatever it raises is printed as one line on stderr and gives 1."""
    logging.basicConfig(level=log_level(), format="%(message)s")  # does nothing where it was done before
    try:
        return run()
    except Exception as error:
        print(f"{program}: {describe(error)}", file=sys.stderr)
        return 1


def log_level() -> int:
    """Of the programs: everything where `VARSR_DEBUG` is set."""
    return logging.DEBUG if os.environ.get(DEBUG) else logging.INFO
