"""Values of fields, as anybody may send them: what fits comes through, for the rest there is one short line."""
from __future__ import annotations

from collections.abc import Callable

import pytest

from utils.errors import UserError
from web.fields import guidance, number, one_of, switch, whole, whole_numbers

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10 ** 4000
LONG = "x" * 10 ** 6
NOT_NUMBERS = (None, "", "4", LONG, True, [], [1], {}, {"path": "/etc/passwd"})
OUT_OF_RANGE = (-1, 17, NAN, INFINITE, -INFINITE, 1e308, HUGE, -HUGE)


def refuses(read: Callable[[object], object], value: object) -> None:
    with pytest.raises(UserError) as caught:
        read(value)
    line = str(caught.value)
    assert line.removeprefix("unknown ").startswith("name") and len(line) < 150 and "\n" not in line


@pytest.mark.parametrize("value", [*NOT_NUMBERS, *OUT_OF_RANGE], ids=lambda value: repr(value)[:12])
def test_what_is_no_number_in_range_is_refused(value: object) -> None:
    refuses(lambda found: number("name", found, 0, 16), value)
    refuses(lambda found: whole("name", found, 0, 16), value)


def test_numbers_come_through() -> None:
    assert number("name", 4, 0, 16) == 4.0 and number("name", 0.5, 0, 16) == 0.5 and whole("name", 16, 0, 16) == 16
    refuses(lambda value: whole("name", value, 0, 16), 1.5)


def test_guidance_is_a_number_in_a_text_or_nothing() -> None:
    assert guidance("") is None and guidance("  ") is None and guidance(None) is None
    assert guidance("1.5") == 1.5 and guidance(3) == 3.0
    for value in ("much", [], {}, True, HUGE, "1\n2"):
        with pytest.raises(UserError, match="no number") as caught:
            guidance(value)
        assert len(str(caught.value)) < 150 and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "c", LONG, 1, [], ["a"], {}, True])
def test_choices_are_those_there_are(value: object) -> None:
    assert one_of("name", "a", ("a", "b")) == "a"
    refuses(lambda found: one_of("name", found, ("a", "b")), value)


@pytest.mark.parametrize("value", [None, 0, 1, "on", []])
def test_switches_are_on_or_off(value: object) -> None:
    assert switch("name", True) is True
    refuses(lambda found: switch("name", found), value)


@pytest.mark.parametrize("value", ["abc", 5, {}, [1.5], ["a"], [True], [None], [[]]])
def test_lists_hold_whole_numbers(value: object) -> None:
    assert whole_numbers("name", [1, HUGE], 2) == (1, HUGE) and whole_numbers("name", None, 2) == ()
    refuses(lambda found: whole_numbers("name", found, 2), value)


def test_long_lists_are_not_looked_through() -> None:
    with pytest.raises(UserError, match="1000000 classes: choose at most 16"):
        whole_numbers("classes", [None] * 10 ** 6, 16)
