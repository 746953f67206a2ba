"""Losses that look at pixels alone: colours, the rims of edges, meshes, and how strong the contrasts are."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.metrics.full_reference import PEAK, smooth_chroma, smooth_luma

COARSER = 2  # halvings of `coarse_distance`
OCTAVES = (0.5, 1.0, 1.0, 1.0)  # weights of `contrast_distance`, finest first: the finest is mostly noise
CONTRAST_SIDE = 8  # samples of an octave to a side of the squares whose contrast is compared
DIRECTIONS = (  # second derivatives across, down and along both diagonals
    ((0.0, 0.0, 0.0), (-0.5, 1.0, -0.5), (0.0, 0.0, 0.0)),
    ((0.0, -0.5, 0.0), (0.0, 1.0, 0.0), (0.0, -0.5, 0.0)),
    ((-0.25, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, -0.25)),
    ((0.0, 0.0, -0.25), (0.0, 0.5, 0.0), (-0.25, 0.0, 0.0)))
FAINTEST = 1.0  # level of contrast below which differences fade: its root has no slope there


def chroma_distance(pictures: Tensor, references: Tensor) -> Tensor:
    """L1 of Cb and Cr between pictures (B, 3, H, W) in [-1, 1]."""
    return F.l1_loss(smooth_chroma((pictures + 1) / 2), smooth_chroma((references + 1) / 2))


def coarse_distance(pictures: Tensor, references: Tensor) -> Tensor:
    """Mean L1 of pictures (B, 3, H, W) in [-1, 1] at a half and at a quarter of their size: what a LR picture can tell,
    and what invented detail must leave alone."""
    distances = []
    for _ in range(COARSER):
        pictures, references = (F.avg_pool2d(each, 2) for each in (pictures, references))
        distances.append(F.l1_loss(pictures, references))
    return torch.stack(distances).mean()


def overshoot(pictures: Tensor, references: Tensor, radius: int) -> Tensor:
    """Mean of how far pictures (B, 3, H, W) lie outside of the range that the references have within `radius` pixels:
    the rims of edges that were sharpened too much."""
    side = 2 * radius + 1
    highest = F.max_pool2d(references, side, 1, radius)
    lowest = -F.max_pool2d(-references, side, 1, radius)
    return (F.relu(pictures - highest) + F.relu(lowest - pictures)).mean()


def lattice(pictures: Tensor, references: Tensor, period: int, cells: int) -> Tensor:
    """Mean size of what pictures (B, 3, H, W) have beyond the references and repeat every `period` pixels, in squares
    of `cells` x `cells` periods: the mesh that a network leaves which draws cell by cell. What is left beside whole
    squares does not count."""
    beyond = pictures - references
    rows, columns = (side // (period * cells) for side in beyond.shape[-2:])
    whole = beyond[..., :rows * cells * period, :columns * cells * period]
    repeated = whole.reshape(-1, rows, cells, period, columns, cells, period).mean(dim=(2, 5))
    return (repeated - repeated.mean(dim=(2, 4), keepdim=True)).abs().mean()


def contrast_distance(pictures: Tensor, references: Tensor) -> Tensor:
    """How much weaker or stronger the contrasts of pictures (B, 3, H, W) in [-1, 1] are than the references', octave
    by octave, whatever their signs: weighted sum of the mean differences of their local contrasts, of luma in 0..1.

    A loss of pixels wants the mean of all that a photograph may show, whose contrasts are weaker than any photograph's,
    most so in the octaves where the LR picture says little. How strong they are can be told far better than where
    each light and dark lies; and what costs the other loss least is to raise what is certain.

    Octaves of which no such square fits into the pictures are left out.
    """
    with torch.no_grad():
        theirs = _contrasts(references)
    distances = [weight * F.l1_loss(mine, real) for weight, mine, real in zip(OCTAVES, _contrasts(pictures), theirs)]
    return sum(distances, pictures.new_zeros(())) / PEAK


def _contrasts(pictures: Tensor) -> list[Tensor]:
    """(B, 4, h, w) an octave, finest first, in levels: root of the mean square of second derivatives along four
    directions, in squares that half overlap.

    A weave, waves across and down, has as much energy as any other pattern, but elsewhere among the directions."""
    planes, contrasts = smooth_luma((pictures + 1) / 2)[:, None], []
    directions = planes.new_tensor(DIRECTIONS)[:, None]
    while len(contrasts) < len(OCTAVES) and min(planes.shape[-2:]) >= CONTRAST_SIDE + 2:
        coarser = _halved(planes)
        octave = planes - F.interpolate(coarser, planes.shape[-2:], mode="bilinear")
        power = F.avg_pool2d(F.conv2d(octave, directions).square(), CONTRAST_SIDE, CONTRAST_SIDE // 2)
        contrasts.append((power + FAINTEST ** 2).sqrt())
        planes = coarser
    return contrasts


def _halved(planes: Tensor) -> Tensor:
    """Half the size by the taps 1, 3, 3, 1: what is finer does not come back as something coarser."""
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(F.avg_pool2d(padded, 2, 1), 2, 1), 2)
