"""The fill under transparent pixels: only there, from what is visible, whatever the shape."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pictures import picture as module
from pictures.picture import bleed


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99),
       dtype=st.sampled_from([np.uint8, np.uint16]), share=st.floats(0, 1))
def test_visible_colours_stay_and_hidden_ones_are_between_them(height: int, width: int, channels: int, seed: int,
                                                                dtype: type, share: float) -> None:
    random = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    color = random.integers(0, top + 1, (height, width, channels), dtype=dtype)
    alpha = np.where(random.random((height, width)) < share, 0, random.integers(1, top + 1, (height, width)))
    alpha = alpha.astype(dtype)
    filled, shown = color.copy(), alpha > 0
    bleed(filled, alpha)
    assert np.array_equal(filled[shown], color[shown])
    if shown.any():
        assert (filled >= color[shown].min(axis=0)).all() and (filled <= color[shown].max(axis=0)).all()
    else:
        assert np.array_equal(filled, color)


def test_the_fill_follows_the_nearest_colours() -> None:
    random = np.random.default_rng(0)
    alpha = np.where(random.random((120, 90)) < 0.02, 255, 0).astype(np.uint8)
    color = np.where(np.arange(90) < 45, 200, 20).astype(np.uint8)[None, :, None].repeat(120, 0).repeat(3, 2)
    color[alpha == 0] = 0
    bleed(color, alpha)
    distance, (rows, columns) = ndimage.distance_transform_edt(alpha == 0, return_indices=True)
    nearest = color[rows, columns]
    close = distance <= 1
    assert np.abs(color.astype(int) - nearest)[close].mean() < 8
    assert np.abs(color.astype(int) - nearest).mean() < 25


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    color = random.integers(0, 256, (101, 57, 3), dtype=np.uint8)
    alpha = np.where(random.random((101, 57)) < 0.9, 0, 255).astype(np.uint8)
    whole, banded = color.copy(), color.copy()
    bleed(whole, alpha)
    monkeypatch.setattr(module, "BAND", 8)
    bleed(banded, alpha)
    assert np.abs(whole.astype(int) - banded).max() <= 1
