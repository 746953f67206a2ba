"""Command lines: kinds of values that flags take, one-line errors, log lines. Light enough for `--help`."""
from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from .errors import log_level, visible

WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

EIGHT_BIT = ("int8", "fp8")  # of the transformer and refiner; the rest is as "auto"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def boolean(text: str) -> bool:
    """`--flag=True` as the published command lines write it."""
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return WORDS[text.lower()]


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas or, as the published `--pn` has them, underscores."""
    try:
        return tuple(int(part) for part in text.replace("_", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers between commas, such as 1,2,4") from None


def bounded(kind: type, low: float | None = None, high: float | None = None, open_low: bool = False,
            open_high: bool = False) -> Callable[[str], float]:
    """An argparse type that refuses values outside [low, high] (ends excluded if open) and says which are valid."""
    def parse(text: str) -> float:
        value = kind(text)
        below = low is not None and (value <= low if open_low else value < low)
        above = high is not None and (value >= high if open_high else value > high)
        if below or above or value != value:
            left = "any" if low is None else f"{'more than' if open_low else 'at least'} {low:g}"
            right = "" if high is None else f" and {'less than' if open_high else 'at most'} {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: must be {left}{right}")
        return value
    parse.__name__ = kind.__name__
    return parse


def automatic(text: str) -> int | str:
    """An argparse type for a positive number, or "auto"."""
    return text if text == "auto" else bounded(int, 1)(text)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with exit code 1 as for every other mistake in the input."""

    def error(self, message: str) -> None:
        self.exit(1, f"{self.prog}: {message}\n")


class _OneLine(logging.Formatter):
    """A message as one line; a traceback behind it stays as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message alone, visible."""
        return visible(super().formatMessage(record))


def set_up_logging() -> None:
    """Log lines as plain text on stderr, beside the progress bar."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(level=log_level(), handlers=[handler])
    for noisy in ("httpx", "huggingface_hub", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
