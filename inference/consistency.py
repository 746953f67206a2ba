"""Results that agree with their LR picture: reduced again, they stay within so many levels of it; and by how much.

The reduction D is Pillow's bicubic resize (a = -0.5, widened by the ratio, so that it does not alias), as
`pictures.rgb.reduce_region` computes it. `Projection` moves a finished picture x to a near one with
|D(x) - LR| <= epsilon by iterated back-projection (Irani and Peleg, 1991): what of the residual exceeds epsilon is
spread over the pixels by the transpose of D and taken off. With a momentum, as these are projected gradient steps on
half the squared excess (Beck and Teboulle, FISTA, 2009).
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pictures.rgb import LEVELS_8, PictureSource, bicubic, reduce_region
from utils.errors import UserError

from .settings import LRConsistency
from .windows import TiledPicture

if TYPE_CHECKING:
    from pictures.result_file import ResultFile

STEPS = 24  # saturated text and checks need them, photographs a third
STEP_SIZE = 1.25  # of 1 / |D|^2; with the momentum below, anything under 1.38 converges
MOMENTUM, MOMENTUM_START = 0.8, 3.0  # k / (k + start), at most the first
SUPPORT = 2.0  # LR pixels that the kernel reaches to each side
ROUNDING = 0.55  # levels by which rounding to 8 bits moves a reduced pixel, at most but for rare cases (see `aim`)
WIENER_SIDE = 5  # LR pixels of the window for local mean and variance; odd
BLOCK = 32  # LR pixels that one small matrix reduces to
PART = 1024  # columns projected at a time, so that memory does not grow with the picture
MEASURED_ROWS = 512  # of the result, measured at a time


class ReducedAxis:
    """D along one side of `length` pixels reduced to `reduced`: those results [start, stop) that depend on nothing but
    the pixels [first, last)."""

    def __init__(self, length: int, reduced: int, first: int, last: int, device: torch.device) -> None:
        self.ratio, self.count = length / reduced, last - first
        centre = (np.arange(reduced) + 0.5) * self.ratio
        low = np.maximum((centre - SUPPORT * self.ratio + 0.5).astype(int), 0)  # as Pillow rounds them
        high = np.minimum((centre + SUPPORT * self.ratio + 0.5).astype(int), length)
        inside = np.flatnonzero((low >= first) & (high <= last))
        self.start, self.stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        edges = [self.start, *range((self.start // BLOCK + 1) * BLOCK, self.stop, BLOCK), self.stop]
        self.blocks: list[tuple[slice, slice, Tensor]] = []  # results, pixels, matrix (results, pixels)
        for begin, end in zip(edges, edges[1:]) if len(inside) else ():
            pixels = np.arange(low[begin], high[end - 1])
            weights = bicubic((pixels - centre[begin:end, None] + 0.5) / self.ratio)
            weights *= (pixels >= low[begin:end, None]) & (pixels < high[begin:end, None])
            matrix = torch.from_numpy(weights / weights.sum(1, keepdims=True)).float().to(device)
            self.blocks.append((slice(begin - self.start, end - self.start),
                                slice(pixels[0] - first, pixels[-1] + 1 - first), matrix))

    def reduced(self, x: Tensor) -> Tensor:
        """(..., last - first) to (..., stop - start)."""
        return torch.cat([x[..., pixels] @ matrix.T for _, pixels, matrix in self.blocks], dim=-1)

    def spread(self, values: Tensor) -> Tensor:
        """The transpose, times the ratio: (..., stop - start) to (..., last - first)."""
        full = values.new_zeros(*values.shape[:-1], self.count)
        for results, pixels, matrix in self.blocks:
            full[..., pixels] += values[..., results] @ (matrix * self.ratio)
        return full


class Reduction:
    """D on a part of a picture: both axes."""

    def __init__(self, rows: ReducedAxis, columns: ReducedAxis) -> None:
        self.rows, self.columns = rows, columns
        self.is_empty = not rows.blocks or not columns.blocks

    def __call__(self, x: Tensor) -> Tensor:
        """(..., h, w) to the LR pixels that lie in it."""
        return self.rows.reduced(self.columns.reduced(x).mT).mT

    def spread(self, values: Tensor) -> Tensor:
        """The transpose of D, times the ratios."""
        return self.columns.spread(self.rows.spread(values.mT).mT)


def target_region(source: PictureSource, noise: float, top: int, left: int, height: int, width: int) -> Tensor:
    """Part (3, height, width) of what a result is compared with, in [0, 1]: the LR picture, or, where `noise` (the
    deviation of its noise, in levels) is given, what a local Wiener filter leaves of it: mean + max(v - noise^2, 0) / v
    (x - mean), by the mean and variance v of the window around each pixel (Lee, 1980, equation 4)."""
    if not noise:
        return source.region(top, left, height, width)
    reach = WIENER_SIDE // 2
    y0, x0 = max(top - reach, 0), max(left - reach, 0)
    y1, x1 = min(top + height + reach, source.height), min(left + width + reach, source.width)
    part = source.region(y0, x0, y1 - y0, x1 - x0).double()
    missing = (x0 - left + reach, left + width + reach - x1, y0 - top + reach, top + height + reach - y1)
    padded = F.pad(part[None], missing, mode="replicate")
    mean = F.avg_pool2d(padded, WIENER_SIDE, 1)[0]
    variance = F.avg_pool2d(padded.square(), WIENER_SIDE, 1)[0] - mean.square()
    share = (1 - (noise / LEVELS_8) ** 2 / variance.clamp(min=1e-12)).clamp(0, 1)
    return (mean + share * (padded[0, :, reach:-reach, reach:-reach] - mean)).clamp(0, 1).float()


def aim(epsilon: float) -> float:
    """How many levels the projection leaves, so that what is rounded to 8 bits keeps within epsilon.

    In texture D averages the pixels' rounding errors; in flat places they are all the same, up to half a level. Where
    no room is left for that, half of epsilon is aimed at.
    """
    return epsilon - min(ROUNDING, epsilon / 2)


class Projection:
    """A filter of a finished picture's rows (see `render.with_context`); `reach` rows on both sides count.

    Raises UserError for results smaller than their LR picture, which D would enlarge.
    """

    def __init__(self, picture: TiledPicture, consistency: LRConsistency, device: torch.device) -> None:
        self.picture, self.consistency, self.device = picture, consistency, device
        source = picture.source
        ratios = picture.height / source.height, picture.width / source.width
        if min(ratios) < 1:
            raise UserError(f"a result of {picture.width}x{picture.height} pixels is smaller than its LR picture of "
                            f"{source.width}x{source.height}: --lr_consistency is for larger ones, choose another size")
        self.epsilon = aim(consistency.epsilon) / LEVELS_8
        # A step of a pixel reaches over the whole support of the LR pixels in whose support it lies.
        self.reach, self.side_reach = (STEPS * (math.ceil(2 * SUPPORT * ratio) + 1) for ratio in ratios)

    def __call__(self, rows: Tensor, top: int) -> Tensor:
        """Rows (3, h, W) from `top` on, in [0, 1], projected."""
        height, width = rows.shape[1:]
        lr = self.picture.source
        down = ReducedAxis(self.picture.height, lr.height, top, top + height, self.device)
        parts = []
        for left in range(0, width, PART):
            first, last = max(left - self.side_reach, 0), min(left + PART + self.side_reach, width)
            reduction = Reduction(down, ReducedAxis(width, lr.width, first, last, self.device))
            part = self._project(rows[:, :, first:last].to(self.device), reduction).cpu()
            parts.append(part[:, :, left - first:left - first + PART])
        return torch.cat(parts, dim=2)

    def _project(self, x: Tensor, reduction: Reduction) -> Tensor:
        """One part (3, h, w)."""
        x = x.clamp(0, 1)
        if reduction.is_empty:
            return x
        rows, columns = reduction.rows, reduction.columns
        target = target_region(self.picture.source, self.consistency.noise, rows.start, columns.start,
                               rows.stop - rows.start, columns.stop - columns.start).to(self.device)
        before = x
        for step in range(STEPS):
            ahead = x + min(step / (step + MOMENTUM_START), MOMENTUM) * (x - before)
            residual = reduction(ahead) - target
            excess = residual - residual.clamp(-self.epsilon, self.epsilon)
            before, x = x, ahead.sub_(reduction.spread(excess), alpha=STEP_SIZE).clamp_(0, 1)
        return x


@dataclass(frozen=True)
class Residual:
    """How far a reduced result is from its LR picture, in 8-bit levels, over all pixels and channels."""

    largest: float
    mean: float


def residual(result: PictureSource, lr: PictureSource, noise: float = 0.0) -> Residual:
    """Measure |D(result) - LR| with Pillow's own resize, band by band; noise: as in `target_region`."""
    largest, total = 0.0, 0.0
    step = max(int(MEASURED_ROWS * lr.height / result.height), 1)
    for top in range(0, lr.height, step):
        height = min(step, lr.height - top)
        reduced = reduce_region(result, (lr.height, lr.width), top, 0, height, lr.width)
        difference = (reduced - target_region(lr, noise, top, 0, height, lr.width)).abs().double() * LEVELS_8
        largest, total = max(largest, float(difference.max())), total + float(difference.sum())
    return Residual(largest, total / (3 * lr.height * lr.width))


def note_residual(result: ResultFile, lr: PictureSource, consistency: LRConsistency | None) -> Residual | None:
    """Measure a result whose pixels are all there, before its file is made, which then says it.

    Nothing is measured where transparency is laid over white: that is no enlargement of the LR picture's colours.
    """
    if consistency is None or result.lies_on_white:
        return None
    found = residual(result, lr, consistency.noise)
    result.say(f"lr_residual={found.largest:.2f} lr_residual_mean={found.mean:.3f}")
    return found


def broken_promise(found: Residual | None, consistency: LRConsistency | None) -> str | None:
    """What a user must know of what was measured; None where the promise is kept, or there is none."""
    if found is None or found.largest <= consistency.epsilon:
        return None
    return f"reduced, it is up to {found.largest:.2f} levels from its LR picture; {consistency.epsilon:g} were promised"
