"""What an LR picture says of itself around each of its pixels: how noisy it is, how steep, how rough.

Of a pixel's own neighbourhoods, and of a wide one: whether a texture is noise or the subject is known, if at all, from
the rest of the picture. The noise is what a mask leaves that knows no planes (Immerkær 1996, "Fast noise variance
estimation").
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pictures.rgb import PictureSource, luma_levels

NEAR, MIDDLE, WIDE = 1, 3, 24  # radii in LR pixels
QUIETEST = 6  # radius in which the least noisy place is looked for
REACH = WIDE + QUIETEST + NEAR + 1  # LR pixels to each side that a place depends on
KINDS = ("noise", "steepness", "roughness")
NAMES = (*(f"{kind} of LR within {NEAR}" for kind in KINDS), "least noise of LR",
         *(f"{kind} of LR within {MIDDLE}" for kind in KINDS),
         *(f"{kind} of LR within {WIDE}" for kind in (*KINDS, "least noise")))
NOISE_MASK = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
NOISE_NORM = 6.0  # the mask's: noise keeps its deviation
QUIET = 0.5  # levels: below, all are alike


def lr_statistics(source: PictureSource, rows: Tensor, columns: Tensor) -> Tensor:
    """Statistics (len(NAMES), n, m), logarithms of levels, at places of the LR picture in pixels: rows (n,) and columns
    (m,), increasing; 0 is the centre of the first pixel. Places beyond the edges are like those at them."""
    top, height, rows = _needed(rows, source.height)
    left, width, columns = _needed(columns, source.width)
    maps = _statistics(luma_levels(source.region(top, left, height, width)))
    return _between(_between(maps, rows, 1), columns, 2)


def _needed(places: Tensor, length: int) -> tuple[int, int, Tensor]:
    """The first pixel that places depend on, how many there are of `length`, and the places counted from the first."""
    places = places.clamp(0, length - 1)
    first, last = max(int(places[0]) - REACH, 0), min(int(places[-1]) + 1 + REACH, length - 1)
    return first, last + 1 - first, places - first


def windowed_mean(maps: Tensor, radius: int) -> Tensor:
    """Means (B, h, w) of maps over squares of 2 radius + 1; edge values go on past the edges."""
    padded, side = F.pad(maps[:, None], (radius,) * 4, mode="replicate"), 2 * radius + 1
    return F.avg_pool2d(F.avg_pool2d(padded, (side, 1), 1), (1, side), 1)[:, 0]


def log_levels(levels: Tensor) -> Tensor:
    """Their logarithm, with which quiet places are all alike."""
    return (levels + QUIET).log()


def _statistics(luma: Tensor) -> Tensor:
    """Of the luma (h, w) of an LR picture in levels, for each of its pixels."""
    padded = F.pad(luma[None, None], (1,) * 4, mode="replicate")[0]
    noise = F.conv2d(padded[None], torch.tensor(NOISE_MASK)[None, None] / NOISE_NORM)[0].abs()
    centre, height, width = padded[:, 1:-1, 1:-1], *luma.shape
    before, after = ((padded[:, i:i + height, 1:-1], padded[:, 1:-1, i:i + width]) for i in (0, 2))
    pairs = list(zip(before, after, strict=True))  # of neighbours above and below, left and right
    steep = sum((b - a).abs() for a, b in pairs) / 2
    rough = sum((a + b - 2 * centre).abs() for a, b in pairs) / 2
    found = torch.cat([noise, steep, rough])
    near = windowed_mean(found, NEAR)
    side, outside = 2 * QUIETEST + 1, F.pad(-near[:1], (QUIETEST,) * 4, value=-torch.inf)
    least = -F.max_pool2d(F.max_pool2d(outside, (side, 1), 1), (1, side), 1)
    own = log_levels(torch.cat([near, least]))
    return torch.cat([own, log_levels(windowed_mean(found, MIDDLE)), windowed_mean(own, WIDE)])


def _between(maps: Tensor, places: Tensor, axis: int) -> Tensor:
    """Maps at places along an axis, linear between their pixels."""
    low = places.long().clamp(max=maps.shape[axis] - 1)
    high = (low + 1).clamp(max=maps.shape[axis] - 1)
    weight = (places - low).view(-1, *(1,) * (2 - axis))
    return torch.lerp(maps.index_select(axis, low), maps.index_select(axis, high), weight)
