"""Windows: every cell covered, shares that sum to one, symmetry, for any size and overlap."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.windows import WindowAxis, WindowGrid, ramp_weight, window_starts


@settings(max_examples=60, deadline=None)
@given(window=st.integers(4, 40), extra=st.integers(0, 200), overlap=st.floats(0, 0.7))
def test_starts_cover_a_side_with_the_overlap(window: int, extra: int, overlap: float) -> None:
    length = window + extra
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0 and starts[-1] == length - window
    for a, b in zip(starts, starts[1:]):
        assert a < b and a + window - b >= int(window * overlap)


@settings(max_examples=60, deadline=None)
@given(window=st.integers(4, 40), extra=st.integers(0, 200), overlap=st.floats(0, 0.7), factor=st.integers(1, 8),
       edge=st.integers(0, 3))
def test_shares_of_every_cell_sum_to_one(window: int, extra: int, overlap: float, factor: int, edge: int) -> None:
    axis = WindowAxis(window + extra, window, overlap, edge).scaled(factor)
    total = torch.zeros(axis.length, dtype=torch.float64)
    for start, share in zip(axis.starts, axis.shares, strict=True):
        assert share.min() > 0
        total[start:start + axis.window] += share
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(window=st.integers(4, 16), height=st.integers(0, 40), width=st.integers(0, 40), overlap=st.floats(0, 0.6))
def test_what_was_cut_sums_to_the_picture(window: int, height: int, width: int, overlap: float) -> None:
    grid = WindowGrid(window + height, window + width, window, overlap)
    picture = torch.rand(grid.rows.length, grid.columns.length)
    merged = torch.zeros_like(picture)
    for place in grid:
        cells = slice(place.top, place.top + window), slice(place.left, place.left + window)
        merged[cells] += picture[cells] * grid.rows.shares[place.row][:, None] * grid.columns.shares[place.column]
    torch.testing.assert_close(merged, picture, atol=1e-5, rtol=0)
    assert [place.index for place in grid] == list(range(len(grid)))


@settings(max_examples=60, deadline=None)
@given(extra=st.integers(0, 90), first=st.integers(0, 90), count=st.integers(1, 30))
def test_reaching_finds_the_windows_of_a_stretch(extra: int, first: int, count: int) -> None:
    axis = WindowAxis(16 + extra, 16)
    expected = [i for i, start in enumerate(axis.starts)
                if set(range(start, start + 16)) & set(range(first, first + count))]
    assert list(axis.reaching(first, first + count)) == expected


def test_weight_is_symmetric_and_smooth() -> None:
    weight = ramp_weight(64, 16)
    assert torch.equal(weight, weight.flip(0)) and weight.min() > 0 and weight[16:-16].eq(1).all()
    assert weight.diff().abs().max() < 0.11


def test_shares_are_symmetric_and_smooth_across_borders() -> None:
    axis = WindowAxis(16 + 12 * 6, 16).scaled(8)
    assert torch.allclose(axis.shares[0], axis.shares[-1].flip(0), atol=1e-7)
    inner = axis.shares[3]
    assert torch.allclose(inner, inner.flip(0), atol=1e-7) and inner[0] < 0.01 and inner.diff().abs().max() < 0.06


def test_edges_count_only_where_nothing_else_covers() -> None:
    axis = WindowAxis(16 + 8 * 4, 16, 0.5, edge=2)
    assert axis.shares[2][:2].max() < 1e-5 and axis.shares[2][-2:].max() < 1e-5  # neighbours fill in
    assert axis.shares[0][:2].min() == 1 and axis.shares[-1][-2:].min() == 1  # the picture's own edge
    ramp = ramp_weight(16, 8, 2)
    torch.testing.assert_close(ramp[:8] + ramp[8:], torch.ones(8, dtype=torch.float64), atol=3e-6, rtol=0)


def test_a_side_below_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="pad it first"):
        window_starts(10, 16)
