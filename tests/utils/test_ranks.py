"""What each of several processes gets to do."""
from __future__ import annotations

import pytest

from utils.ranks import Ranks


def parts(world: int, method: str, items: list[int]) -> list[list[int]]:
    """Every rank's, without processes."""
    found = []
    for rank in range(world):
        ranks = Ranks()
        ranks.rank, ranks.world = rank, world
        found.append(getattr(ranks, method)(items))
    return found


@pytest.mark.parametrize("method", ["strided", "contiguous"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_has_its_part(world: int, method: str) -> None:
    items = list(range(7))
    found = parts(world, method, items)
    assert sorted(sum(found, [])) == items
    assert max(map(len, found)) - min(map(len, found)) <= 1
    if method == "contiguous":
        assert sum(found, []) == items
