"""Windows: every pixel covered, weights that add up, sizes that are exact, for any size and overlap."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.windows import Blend, WindowGrid, ramp_weight, window_starts


@settings(max_examples=60, deadline=None)
@given(window=st.integers(4, 40), extra=st.integers(0, 200), overlap=st.floats(0, 0.7))
def test_starts_cover_a_side_with_the_overlap(window: int, extra: int, overlap: float) -> None:
    length = window + extra
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0 and starts[-1] == length - window
    for a, b in zip(starts, starts[1:]):
        assert a < b and a + window - b >= int(window * overlap)


@settings(max_examples=30, deadline=None)
@given(window=st.integers(4, 16), height=st.integers(0, 40), width=st.integers(0, 40), overlap=st.floats(0.1, 0.6))
def test_blending_what_was_cut_gives_the_picture_back(window: int, height: int, width: int, overlap: float) -> None:
    grid = WindowGrid(window + height, window + width, window, overlap)
    picture = torch.rand(2, grid.height, grid.width)
    blend = Blend(grid, channels=2)
    for place in grid:
        blend.add(place, grid.cut(picture, place))
    assert blend.weights.min() > 0
    torch.testing.assert_close(blend.result(), picture, atol=1e-5, rtol=0)


def test_weight_is_symmetric_and_smooth() -> None:
    weight = ramp_weight(64, 16)
    assert torch.equal(weight, weight.flip(0)) and weight.min() > 0 and weight[16:-16].eq(1).all()
    assert weight.diff().abs().max() < 0.11


def test_neighbouring_ramps_sum_to_one() -> None:
    """Two windows that overlap by exactly the ramp weigh one in sum, so their border cannot be seen."""
    weight = ramp_weight(64, 16)
    torch.testing.assert_close(weight[-16:] + weight[:16], torch.ones(16))


def test_a_side_below_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="pad it first"):
        window_starts(10, 16)
