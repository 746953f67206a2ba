"""The pool of generated samples: a ring that keeps rows together."""
from __future__ import annotations

import pytest
import torch

from training.pool import SamplePool, from_bytes, to_bytes


def filled(size: int, *counts: int) -> SamplePool:
    """Samples numbered in the order in which they were added."""
    pool, number = SamplePool(size), 0
    for count in counts:
        numbers = torch.arange(number, number + count)
        pool.add(number=numbers, twice=2 * numbers[:, None])
        number += count
    return pool


@pytest.mark.parametrize("counts", [(3,), (3, 2), (5, 4), (4, 4, 4, 1)])
def test_it_keeps_the_newest(counts: tuple[int, ...]) -> None:
    pool, total = filled(5, *counts), sum(counts)
    assert len(pool) == min(total, 5) and pool.added == total
    assert sorted(pool.fields["number"][:len(pool)].tolist()) == list(range(max(total - 5, 0), total))


def test_rows_stay_together() -> None:
    drawn = filled(5, 4, 4).draw(50, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["twice"][:, 0], 2 * drawn["number"])
    assert set(drawn["number"].tolist()) == {3, 4, 5, 6, 7}


def test_a_part_filled_pool_is_drawn_from_what_it_holds() -> None:
    assert set(filled(100, 3).draw(50, torch.Generator().manual_seed(0))["number"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("counts", [(3,), (5, 4)])
def test_its_state(counts: tuple[int, ...]) -> None:
    pool, again = filled(5, *counts), SamplePool(5)
    again.load_state_dict(pool.state_dict())
    for each in (pool, again):
        each.add(number=torch.tensor([99]), twice=torch.tensor([[198]]))
    assert again.added == pool.added and torch.equal(again.fields["number"][:len(again)],
                                                     pool.fields["number"][:len(pool)])


@pytest.mark.parametrize("size", [3, 7])
def test_the_state_of_another_pool_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="resume with the settings of the run"):
        SamplePool(size).load_state_dict(filled(5, 5, 4).state_dict())


def test_pictures_in_bytes() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)
    assert from_bytes(levels)[[0, 255]].tolist() == [-1, 1]
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
