"""What is said of an LR picture, against pictures of which it is known."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from inference.lr_statistics import NAMES, QUIET, lr_statistics
from pictures.rgb import TensorSource

WIDE = slice(7, 10)  # noise, steepness, roughness of the whole


def gray(luma: Tensor) -> TensorSource:
    """A picture of levels (h, w)."""
    return TensorSource((luma / 255).expand(3, -1, -1))


def pixels(length: int) -> Tensor:
    return torch.arange(length).float()


def statistics(luma: Tensor) -> Tensor:
    return lr_statistics(gray(luma), *map(pixels, luma.shape)).exp() - QUIET


def test_noise_is_found_and_a_slope_is_none() -> None:
    noise = 8 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    slope = 100 + 2.0 * pixels(64).expand(64, -1) + 0.5 * pixels(64)[:, None]
    found, sloped = statistics(128 + noise), statistics(slope)
    assert found.shape == (len(NAMES), 64, 64)
    mean = 8 * math.sqrt(2 / math.pi)  # of a normal number's absolute value
    assert float(found[NAMES.index("noise of LR within 3")].mean()) == pytest.approx(mean, rel=0.05)
    assert float(found[NAMES.index("least noise of LR")].mean()) < 0.7 * mean
    inner = sloped[:, 8:-8, 8:-8]
    assert float(inner[:1].abs().max()) < 1e-2 and float(inner[2].abs().max()) < 1e-2
    assert float(inner[1].mean()) == pytest.approx((4 + 1) / 2, rel=1e-3)  # over two pixels


def test_a_place_sees_the_wide_surroundings() -> None:
    """Half of a picture is noisy: the wide statistics pass over the border slowly, the near ones at once."""
    luma = torch.full((20, 160), 128.0)
    luma[:, 80:] += 20 * torch.randn(20, 80, generator=torch.Generator().manual_seed(1))
    found = statistics(luma)[:, 10]
    near, wide = found[0], found[WIDE][0]
    assert float(near[:78].max()) < 1e-3 < 3 < float(near[83:].min())
    assert float(wide[50]) < 1e-3 and float(wide[110]) > 5 and bool((wide[56:104].diff() > 0).all())


@pytest.mark.parametrize("top", [0, 13, 60])
def test_a_part_is_that_of_the_whole(top: int) -> None:
    source = gray(255 * torch.rand(140, 37, generator=torch.Generator().manual_seed(2)))
    rows, columns = torch.arange(280) / 2 - 0.25, torch.arange(90) * (37 / 90) - 0.3
    whole = lr_statistics(source, rows, columns)
    part = lr_statistics(source, rows[top:top + 31], columns)
    torch.testing.assert_close(part, whole[:, top:top + 31], atol=1e-4, rtol=1e-5)


def test_places_between_pixels_are_between_them() -> None:
    source = gray(255 * torch.rand(9, 12, generator=torch.Generator().manual_seed(3)))
    whole = lr_statistics(source, pixels(9), pixels(12))
    between = lr_statistics(source, torch.tensor([2.0, 2.5]), torch.tensor([-3.0, 4.25, 40.0]))
    torch.testing.assert_close(between[:, 0, [0, 2]], whole[:, 2][:, [0, 11]])
    torch.testing.assert_close(between[:, 1, 1], (whole[:, 2:4, 4].mean(1) * 3 + whole[:, 2:4, 5].mean(1)) / 4,
                               atol=1e-5, rtol=1e-5)
