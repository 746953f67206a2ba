"""Colour transfer: the moments and frequencies it promises (its reference numbers are in test_reference.py)."""
from __future__ import annotations

import torch

from inference.render import adain_color_fix, low_frequencies, wavelet_color_fix


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = 0.3 + 0.2 * torch.rand(3, 70, 90, generator=generator)
    source = 0.4 + 0.3 * torch.rand(3, 70, 90, generator=generator)
    return target, source


def test_adain_moves_mean_and_deviation() -> None:
    target, source = pictures()
    fixed = adain_color_fix(target, source)
    torch.testing.assert_close(fixed.mean((1, 2)), source.mean((1, 2)), atol=1e-3, rtol=0)
    torch.testing.assert_close(fixed.std((1, 2)), source.std((1, 2)), atol=2e-3, rtol=0)


def test_wavelet_takes_low_frequencies_from_the_source() -> None:
    target, source = pictures()
    fixed = wavelet_color_fix(target, source)
    torch.testing.assert_close(low_frequencies(fixed).mean((1, 2)), source.mean((1, 2)), atol=5e-3, rtol=0)
    torch.testing.assert_close(fixed - low_frequencies(source), target - low_frequencies(target), atol=1e-5, rtol=0)


def test_low_frequencies_leave_a_constant_alone() -> None:
    flat = torch.full((3, 40, 33), 0.25)
    torch.testing.assert_close(low_frequencies(flat), flat)


def test_batches_and_single_pictures_agree() -> None:
    target, source = pictures()
    for fix in (adain_color_fix, wavelet_color_fix):
        torch.testing.assert_close(fix(target[None], source[None])[0], fix(target, source))


def test_a_single_pixel_takes_the_sources_colour() -> None:
    target, source = torch.rand(3, 1, 1), torch.rand(3, 1, 1)
    torch.testing.assert_close(adain_color_fix(target, source), source)
