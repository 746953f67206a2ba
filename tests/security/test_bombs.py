"""Small files that cost much: each is read, or refused in one line, within 5 seconds and 300 MB."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.bombs import BOMBS
from tests.security.fuzz_process import Watched


@pytest.fixture(scope="module")
def process() -> Iterator[Watched]:
    with Watched() as watched:
        yield watched


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_read_or_refused_in_bounds(process: Watched, name: str):
    given = BOMBS[name]()
    if given is None:
        pytest.skip("needs a package that is not installed")
    answer = process.read(given)
    assert not answer.is_finding, f"{name}: {answer}"
