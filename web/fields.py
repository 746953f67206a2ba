"""What the fields of the page hold, which anybody may have sent: plain values that fit, or one line that says which do
not."""
from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence

from utils.errors import UserError

SHOWN = 40  # characters of a value that are told


def shown(value: object) -> str:
    """A value as a message names it: short, whatever its length."""
    text = f"{value:g}" if isinstance(value, float) else reprlib.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def number(name: str, value: object, low: float, high: float) -> float:
    """A number from `low` to `high`. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{name} {shown(value)} is no number: give one from {low:g} to {high:g}")
    if not low <= value <= high:  # nor is NaN
        raise UserError(f"{name} {shown(value)} is out of range: must be from {low:g} to {high:g}")
    return float(value)


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} {shown(value)} is no whole number: give one from {low} to {high}")
    if not low <= value <= high:
        raise UserError(f"{name} {shown(value)} is out of range: must be from {low} to {high}")
    return value


def guidance(value: object) -> float | None:
    """The model's own for an empty field."""
    return optional_number("guidance", value, "the model's own")


def optional_number(name: str, value: object, otherwise: str) -> float | None:
    """The number in a text field, None for an empty one, which stands for `otherwise`: gradio's own field for numbers
    takes empty for 0. Raises UserError."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value) if isinstance(value, str) else number(name, value, float("-inf"), float("inf"))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name} {shown(value)} is no number: give one, or nothing for {otherwise}") from error


def one_of(name: str, value: object, choices: Iterable[str]) -> str:
    """One of the choices. Raises UserError."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"unknown {name} {shown(value)}: choose one of {', '.join(choices)}")
    return value


def switch(name: str, value: object) -> bool:
    """On or off. Raises UserError."""
    if not isinstance(value, bool):
        raise UserError(f"{name} {shown(value)} is neither on nor off")
    return value


def whole_numbers(name: str, value: object, most: int) -> tuple[int, ...]:
    """A list of at most so many whole numbers. Raises UserError."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{name} {shown(value)} are no list of whole numbers")
    if len(value) > most:
        raise UserError(f"{len(value)} {name}: choose at most {most}")
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        raise UserError(f"{name} {shown(value)} are not all whole numbers")
    return tuple(value)
