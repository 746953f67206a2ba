"""How far a result may be from the truth, pixel by pixel: what one generation knows of that for nothing, and the map
that a calibrated network (`models/error_model.py`) makes of it.

Known are, for every token of every scale, how undecided the guided distribution was; the contrasts of the result and
of the LR picture around each pixel; how far one is from the other; what the LR picture says of its noise and sharpness;
and, where further results were asked for, how far those are apart. The map is made at half the result's resolution, for
errors are not known more sharply than that.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import VARSRConfig
from models.error_model import MARGIN, ErrorHead
from pictures.rgb import luma_levels

from .evidence import RADII, input_names
from .lr_statistics import QUIET, log_levels, lr_statistics, windowed_mean
from .render import Band, merged_cells
from .settings import UncertaintySettings
from .windows import TiledPicture

CELL = 2  # pixels of a result to a pixel of the grid that errors are estimated on
LAG = 2  # radius of the blur within which result and LR picture ought to agree
REACH = CELL * (max(RADII) + LAG + 1)  # pixels to each side that a pixel of the map depends on


class ErrorMap:
    """Estimates errors in rows of one picture, and remembers its mean inputs."""

    reach = REACH

    def __init__(self, picture: TiledPicture, settings: UncertaintySettings) -> None:
        self.picture, self.settings = picture, settings
        names = input_names(picture.config)["several" if settings.samples else "one"]
        self.inputs = len(names)
        self.head: ErrorHead | None = settings.calibration and settings.calibration.head(settings.samples)
        self.total, self.pixels = torch.zeros(self.inputs), 0

    def __call__(self, rows: Tensor, top: int) -> Tensor:
        """Rows (3, n, W) in [0, 1] of the result from `top` on, or (4, n, W) of `with_spread`, to the expected absolute
        error of luma in levels (1, n, W). The first and last `reach` rows are only right at the picture's edges."""
        above = top % CELL  # whole cells; the rows above are context that nobody sees
        inputs = self.inputs_of(rows, top, above)
        self.total += inputs.flatten(1).sum(1)
        self.pixels += inputs[0].numel()
        errors = self.head(inputs) if self.head is not None else uncalibrated(inputs, self.picture.config)
        return at_full_size(errors)[None, above:above + rows.shape[1], :rows.shape[2]]

    def inputs_of(self, rows: Tensor, top: int, above: int = 0) -> Tensor:
        """The inputs (F, h, w) of rows as above, on the coarser grid."""
        height, width = rows.shape[1:]
        guide = self.picture.guide(top, 0, height, width)
        padding = (0, -width % CELL, above, -(above + height) % CELL)
        luma, lr = (F.pad(luma_levels(each)[None, None], padding, mode="replicate")[0, 0] for each in (rows[:3], guide))
        cells = self._cells(top - above, *(side // CELL for side in luma.shape))
        inputs = [cells, *_picture_inputs(luma, lr), self._lr_statistics(top - above, *cells.shape[1:])]
        if self.settings.samples:
            spread = F.avg_pool2d(F.pad(rows[3][None, None], padding, mode="replicate"), CELL)[0]
            inputs += [log_levels(windowed_mean(spread, radius)) for radius in RADII[:2]]
        return torch.cat(inputs)

    def _lr_statistics(self, top: int, height: int, width: int) -> Tensor:
        """`lr_statistics` of cells (height, width) from row `top` of the result on."""
        picture, source = self.picture, self.picture.source
        centres = (top + CELL * (torch.arange(height) + 0.5), CELL * (torch.arange(width) + 0.5))
        ratios = source.height / picture.height, source.width / picture.width
        return lr_statistics(source, *(each * ratio - 0.5 for each, ratio in zip(centres, ratios, strict=True)))

    def _cells(self, top: int, height: int, width: int) -> Tensor:
        """What the tokens say, (2K, height, width) from row `top` of the result on."""
        factor, grid = self.picture.factor, self.picture.grid
        first = max(top // factor - 1, 0)
        last = min(-(-(top + height * CELL) // factor) + 1, grid.rows.length)
        merged = merged_cells(self.picture, self.picture.evidence, 2 * len(self.picture.config.vqvae.scales), first,
                              last - first)
        fine = F.interpolate(merged[None], scale_factor=factor / CELL, mode="bilinear")[0]
        start = (top - first * factor) // CELL
        inside = fine[:, start:start + height, :width]
        return F.pad(inside[None], (0, width - inside.shape[2], 0, height - inside.shape[1]), mode="replicate")[0]

    def take(self) -> Tensor:
        """The sums of inputs since the last call and the number of their pixels, (F + 1,)."""
        taken = torch.cat([self.total, torch.tensor([float(self.pixels)])])
        self.total, self.pixels = torch.zeros(self.inputs), 0
        return taken

    def merge(self, parts: Iterable[Tensor]) -> None:
        """Take what `take` gave of all parts of the picture in place of the own sums."""
        whole = torch.stack(list(parts)).double().sum(0)
        self.total, self.pixels = whole[:-1].float(), int(whole[-1])

    @property
    def strangeness(self) -> float | None:
        """How far the picture is from those of the calibration; above 1: outside. None where that cannot be told."""
        if self.head is None or not self.pixels:
            return None
        return self.head.strangeness(self.total / self.pixels)

    @property
    def warning(self) -> str | None:
        """What to tell of a picture unlike those of the calibration; None of others."""
        strangeness = self.strangeness
        if strangeness is None or strangeness <= 1:
            return None
        return (f"the picture is unlike those that the map was calibrated on ({strangeness:.1f} times as far off as "
                "99 % of them): do not rely on its numbers")

    @property
    def description(self) -> str:
        """What the map's numbers are, in words."""
        what = "expected absolute error of luma in levels of 0 to 255"
        if self.head is None:
            return f"a guess at the {what}: uncalibrated"
        fitted = self.settings.calibration.fitted
        unlike = "" if self.warning is None else "; unlike the pictures of the calibration"
        return (f"{what}; {fitted.coverage:.0%} of pixels are within {float(self.head.band):.3g} times (it + "
                f"{MARGIN:g}); calibrated on {fitted.crops} crops of {fitted.data}{unlike}")


def at_full_size(errors: Tensor) -> Tensor:
    """Errors (h, w) of the coarser grid to those of pixels, twice as many a side."""
    return F.interpolate(errors[None, None], scale_factor=CELL, mode="bilinear")[0, 0]


def _picture_inputs(luma: Tensor, lr: Tensor) -> Iterator[Tensor]:
    """Inputs (F, h, w) of the result's and the enlarged LR picture's luma, (2h, 2w) each in levels."""
    both = torch.stack([lr, luma])
    mean, square = (F.avg_pool2d(each[:, None], CELL)[:, 0] for each in (both, both.square()))
    variances = (windowed_mean(square, radius) - windowed_mean(mean, radius).square() for radius in RADII)
    contrasts = [variance.clamp(min=0).sqrt() for variance in variances]
    yield torch.stack([log_levels(contrast[i]) for i in range(2) for contrast in contrasts])
    change = luma - lr
    size = F.avg_pool2d(change.abs()[None, None], CELL)[0]
    kept = windowed_mean(windowed_mean(F.avg_pool2d(change[None, None], CELL)[0], LAG).abs(), RADII[1])
    steps = (F.pad(mean[1:], (0, 1, 0, 1), mode="replicate").diff(dim=axis).abs() for axis in (1, 2))
    down, across = steps
    gradient = windowed_mean(down[:, :, :-1] + across[:, :-1], RADII[0])
    changes = [*(windowed_mean(size, radius) for radius in RADII[:2]), kept, gradient]
    yield torch.cat([log_levels(each) for each in changes])


def uncalibrated(inputs: Tensor, config: VARSRConfig) -> Tensor:
    """A guess at the expected error in levels (h, w), of inputs (F, h, w): how far the result is from the enlarged LR
    picture, the more of it the less the tokens of the last scale were decided."""
    names = input_names(config)["one"]
    side = config.vqvae.side
    change = inputs[names.index(f"change within {RADII[1]}")].exp() - QUIET
    return change * (0.5 + inputs[names.index(f"entropy of {side}x{side}")])


def with_spread(result: Iterator[Band], others: Sequence[Iterator[Band]]) -> Iterator[Band]:
    """Bands (3, n, W) of a result with the root mean square difference of further ones' luma behind them, in levels:
    (4, n, W)."""
    for (top, rows), *rest in zip(result, *others, strict=True):
        luma = luma_levels(rows)
        spread = torch.stack([(luma_levels(other) - luma).square() for _, other in rest]).mean(0).sqrt()
        yield top, torch.cat([rows, spread[None]])
