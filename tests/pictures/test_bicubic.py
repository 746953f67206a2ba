"""Enlarging parts of a picture: against PyTorch's resize, and against the whole."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inference.jobs import SizeRequest
from pictures.rgb import TensorSource, reduce_region, upsample, upsample_region


@pytest.mark.parametrize("size, scale", [((9, 14), 4.0), ((1, 1), 4.0), ((30, 7), 2.5), ((5, 40), 1.0), ((4, 4), 16.0)])
def test_it_is_an_antialiased_bicubic_resize(size: tuple[int, int], scale: float) -> None:
    lr = torch.rand(3, *size)
    whole = [round(side * scale) for side in size]
    expected = F.interpolate(lr[None], size=whole, mode="bicubic", antialias=True)[0].clamp(0, 1)
    torch.testing.assert_close(upsample(lr, scale), expected, atol=2e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 30), w=st.integers(1, 30), scale=st.floats(1, 6), data=st.data())
def test_a_part_is_that_part_of_the_whole(h: int, w: int, scale: float, data: st.DataObject) -> None:
    source = TensorSource(torch.rand(3, h, w))
    height, width = round(h * scale), round(w * scale)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    whole = upsample_region(source, (height, width), 0, 0, height, width)
    part = upsample_region(source, (height, width), top, left, rows, columns)
    # Pillow holds the box in single precision: a place up to 30 is known to 2e-6 of a pixel, along which random values
    # change by as much.
    torch.testing.assert_close(part, whole[:, top:top + rows, left:left + columns], atol=4e-6, rtol=0)


@pytest.mark.parametrize("request_, size", [
    (SizeRequest(4.0), (40, 80)), (SizeRequest(4.0, width=50), (25, 50)), (SizeRequest(4.0, height=25), (25, 50)),
    (SizeRequest(4.0, width=30, height=20), (20, 30)), (SizeRequest(4.0, longest=100), (50, 100)),
    (SizeRequest(1.0), (10, 20)), (SizeRequest(1.04), (10, 21)), (SizeRequest(15.99), (160, 320)),
    (SizeRequest(16.0), (160, 320)),
])
def test_requested_sizes(request_: SizeRequest, size: tuple[int, int]) -> None:
    assert request_.size(TensorSource(torch.zeros(3, 10, 20))) == size


@pytest.mark.parametrize("request_", [
    SizeRequest(4.0, width=19), SizeRequest(4.0, longest=330), SizeRequest(4.0, width=0),
    *(SizeRequest(scale) for scale in (0.2, 0.99, 16.01, 1e6, math.nan, math.inf))])
def test_sizes_out_of_range_are_refused(request_: SizeRequest) -> None:
    with pytest.raises(ValueError, match="from 1 to 16"):
        request_.size(TensorSource(torch.zeros(3, 10, 20)))


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 12), w=st.integers(1, 12), scale=st.floats(1, 16), data=st.data())
def test_a_reduced_part_is_that_part_of_pillows_reduction(h: int, w: int, scale: float, data: st.DataObject) -> None:
    channel = torch.rand(round(h * scale), round(w * scale))
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    rows, columns = data.draw(st.integers(1, h - top)), data.draw(st.integers(1, w - left))
    whole = torch.from_numpy(np.array(Image.fromarray(channel.numpy()).resize((w, h), Image.BICUBIC)))
    part = reduce_region(TensorSource(channel.expand(3, -1, -1)), (h, w), top, left, rows, columns)
    expected = whole[top:top + rows, left:left + columns].expand(3, -1, -1)
    torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)
