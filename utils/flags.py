"""Kinds of values that flags take; light enough for `--help`."""
from __future__ import annotations

import argparse

WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


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
