"""Losses on pixels alone, against loops, Pillow and properties."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from training import pixel_losses
from training.pixel_losses import (
    CONTRAST_SIDE,
    OCTAVES,
    chroma_distance,
    coarse_distance,
    contrast_distance,
    lattice,
    overshoot,
)


def test_overshoot_is_what_lies_outside_of_the_range_nearby() -> None:
    """Against a loop over pixels."""
    generator = torch.Generator().manual_seed(0)
    made, real = (torch.rand(1, 2, 7, 9, generator=generator) * 2 - 1 for _ in range(2))
    made, total, radius = made * 1.5, 0.0, 2
    for channel in range(2):
        for y in range(7):
            for x in range(9):
                near = real[0, channel, max(y - radius, 0):y + radius + 1, max(x - radius, 0):x + radius + 1]
                value = made[0, channel, y, x]
                total += max(value - near.max(), near.min() - value, torch.tensor(0.0)).item()
    assert total > 0
    assert overshoot(made, real, radius).item() == pytest.approx(total / made.numel(), rel=1e-5)
    assert overshoot(real, real, radius) == 0


def test_a_lattice_is_what_repeats() -> None:
    """Any pattern of the period on any picture: its own mean size, whatever lies beside whole squares."""
    generator = torch.Generator().manual_seed(0)
    photograph = torch.rand(2, 3, 35, 33, generator=generator)
    cell = torch.rand(4, 4, generator=generator)
    cell -= cell.mean()
    mesh = cell.repeat(9, 9)[:35, :33]
    assert lattice(photograph + mesh, photograph, 4, 4).item() == pytest.approx(cell.abs().mean().item(), rel=1e-4)
    brighter = photograph + torch.linspace(-1, 1, 3)[:, None, None]
    assert lattice(brighter, photograph, 4, 4) == pytest.approx(0, abs=1e-6)


def test_what_does_not_repeat_is_no_lattice() -> None:
    """Against a loop over squares and places."""
    generator = torch.Generator().manual_seed(1)
    made, real = (torch.rand(1, 1, 16, 16, generator=generator) for _ in range(2))
    beyond, total = (made - real)[0, 0].numpy().astype(float), 0.0
    for top in (0, 8):
        for left in (0, 8):
            square = beyond[top:top + 8, left:left + 8]
            places = np.array([[square[y::4, x::4].mean() for x in range(4)] for y in range(4)])
            total += np.abs(places - places.mean()).mean()
    assert lattice(made, real, 4, 2).item() == pytest.approx(total / 4, rel=1e-4)


def test_the_distance_of_colours_is_that_of_pillows_planes() -> None:
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)) for seed in (0, 1)]
    ours = chroma_distance(*(torch.from_numpy(np.array(each)).permute(2, 0, 1)[None] / 127.5 - 1 for each in images))
    planes = [np.array(each.convert("YCbCr"), dtype=float)[..., 1:] for each in images]
    assert ours.item() == pytest.approx(np.abs(planes[0] - planes[1]).mean() / 255, rel=0.02)


def photographs(seed: int = 2) -> torch.Tensor:
    """Two pictures (2, 3, 128, 128) in [-0.5, 0.5] with structure of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    sides = (4, 8, 16, 32, 64, 128)
    return sum(F.interpolate(torch.rand(2, 3, side, side, generator=generator) - 0.5, (128, 128), mode="bilinear")
               for side in sides) / len(sides)


def test_what_is_finer_than_the_coarse_pictures_is_free() -> None:
    """Against NumPy; and a checkerboard does not count."""
    made, real = photographs(6), photographs(7)
    halves = [each.numpy().reshape(2, 3, 64, 2, 64, 2).mean((3, 5)) for each in (made, real)]
    quarters = [each.reshape(2, 3, 32, 2, 32, 2).mean((3, 5)) for each in halves]
    expected = sum(np.abs(a - b).mean() for a, b in (halves, quarters)) / 2
    assert coarse_distance(made, real).item() == pytest.approx(expected, rel=1e-4)
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(64, 64)
    assert coarse_distance(real + checkers, real) == pytest.approx(0, abs=1e-6)


def test_contrasts_have_no_sign() -> None:
    """The negative of a picture has its contrasts, and so has a brighter one."""
    pictures = photographs()
    assert contrast_distance(-pictures, pictures) == pytest.approx(0, abs=1e-5)
    assert contrast_distance(pictures + 0.3, pictures) == pytest.approx(0, abs=1e-5)
    assert contrast_distance(0.7 * pictures, pictures) > 0.002


def test_the_contrast_distance_is_that_of_a_loop() -> None:
    """Octave by octave, square by square, in NumPy; Pillow enlarges."""
    made, real = photographs(3), photographs(4)
    planes = [((each[0].numpy().astype(float) + 1) * 127.5 * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)
              for each in (made, real)]
    expected, side = 0.0, CONTRAST_SIDE
    for weight in OCTAVES:
        contrasts = []
        for i, plane in enumerate(planes):
            rows = len(plane)
            padded = np.pad(plane, 1, mode="edge")
            half = sum(down * across * padded[y:y + rows:2, x:x + rows:2] for y, down in enumerate((1, 3, 3, 1))
                       for x, across in enumerate((1, 3, 3, 1))) / 64
            octave = plane - np.asarray(Image.fromarray(half.astype(np.float32)).resize((rows, rows), Image.BILINEAR))
            directions = [octave[1:-1, 1:-1] - (octave[1 - y:rows - 1 - y, 1 - x:rows - 1 - x]
                                                + octave[1 + y:rows - 1 + y, 1 + x:rows - 1 + x]) / 2
                          for y, x in ((0, 1), (1, 0), (1, 1), (1, -1))]
            directions = [each / size for each, size in zip(directions, (1, 1, 2, 2), strict=True)]
            squares = [each[y:y + side, x:x + side] for each in directions
                       for y in range(0, rows - 2 - side + 1, side // 2)
                       for x in range(0, rows - 2 - side + 1, side // 2)]
            contrasts.append(np.array([np.sqrt((each ** 2).mean() + 1) for each in squares]))
            planes[i] = half
        expected += weight * np.abs(contrasts[0] - contrasts[1]).mean() / 255
    assert contrast_distance(made[:1], real[:1]).item() == pytest.approx(expected, rel=1e-3)


def test_faint_contrasts_are_raised() -> None:
    """Down the slope a soft picture becomes sharper where it is certain, not grainy: along what it has."""
    real = photographs(5)
    soft = (0.5 * real).requires_grad_()
    contrast_distance(soft, real).backward()
    assert F.cosine_similarity(-soft.grad.flatten(), real.flatten() - real.mean(), dim=0) > 0.3
    flat = torch.zeros(1, 3, 128, 128, requires_grad=True)
    contrast_distance(flat, real[:1]).backward()
    assert torch.isfinite(flat.grad).all()


def test_small_pictures_have_the_octaves_that_fit() -> None:
    made, real = torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20)
    assert contrast_distance(made, real) > 0
    assert contrast_distance(made[..., :6, :6], real[..., :6, :6]) == 0


def test_grain_is_no_contrast_of_coarser_octaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the finest octave comes back in the others."""
    real, checkers = photographs(8), torch.tensor([[0.2, -0.2], [-0.2, 0.2]]).repeat(64, 64)
    waves = 0.2 * torch.cos(0.42 * 2 * torch.pi * torch.arange(128.0))  # half of the size by plain means has them back
    assert contrast_distance(real + checkers, real) > 0.1 * contrast_distance(1.5 * real, real)
    monkeypatch.setattr(pixel_losses, "OCTAVES", (0.0, 1.0, 1.0, 1.0))
    assert contrast_distance(real + checkers, real) < 0.01 * contrast_distance(1.5 * real, real)
    assert contrast_distance(real + waves, real) < 0.05 * contrast_distance(1.5 * real, real)


def test_a_weave_is_another_contrast_than_its_diagonal_one() -> None:
    """Waves across and down, and the same waves turned by 45 degrees: the same energy at the same frequency."""
    y, x = torch.meshgrid(*2 * [torch.arange(64.0) * 2 * torch.pi / 6], indexing="ij")
    weave, turned = (0.1 * (torch.sin(a) + torch.sin(b)).expand(1, 3, 64, 64)
                     for a, b in ((x, y), ((x + y) / 2 ** 0.5, (x - y) / 2 ** 0.5)))
    assert weave.square().mean().item() == pytest.approx(turned.square().mean().item(), rel=0.02)
    assert contrast_distance(weave, turned) > 0.2 * contrast_distance(weave, torch.zeros_like(weave))
    assert contrast_distance(weave, weave.transpose(2, 3)) == pytest.approx(0, abs=1e-6)
