"""Examples of a model's errors: crops of photographs, degraded, restored, and compared with the truth."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.products import rendered
from inference.restore import generated
from inference.settings import RestoreSettings, UncertaintySettings
from inference.uncertainty import CELL, ErrorMap, with_spread
from models.varsr import VARSR
from pictures.rgb import BT601

LEVELS = 255.0
BLUR = 3.0  # pixels, of the errors that a map is compared with
REACH = 3  # deviations of the blur

Degrade = Callable[[Tensor], Tensor]  # HR (3, H, W) -> LR, both in [0, 1]


@dataclass(frozen=True)
class Example:
    """A restored crop: inputs (F, h, w) of its map, the errors (H, W) of its luma in levels, the same blurred, the LR
    picture enlarged and the result, both (3, H, W) in [0, 1], and the spread (H, W) of further results in levels."""

    inputs: Tensor
    error: Tensor
    blurred: Tensor
    enlarged: Tensor
    result: Tensor
    spread: Tensor | None

    @property
    def coarse(self) -> Tensor:
        """The blurred errors on the map's own grid (h, w)."""
        return F.avg_pool2d(self.blurred[None], CELL)[0]


def example(model: VARSR, hr: Tensor, lr: Tensor, settings: RestoreSettings) -> Example:
    """Restore an LR picture (3, h, w) of an HR one (3, H, W), both in [0, 1], H and W even, and compare."""
    picture, batch = generated(model, lr, settings, size=tuple(hr.shape[1:]))
    bands = rendered(model, picture, settings, batch, picture.finished)
    if picture.samples:
        bands = with_spread(bands, [rendered(model, picture, settings, batch, each) for each in picture.samples])
    rows = torch.cat([band for _, band in bands], dim=1)
    error = luma_error(rows[:3], hr)
    return Example(ErrorMap(picture, settings.uncertainty).inputs_of(rows, 0), error, blurred(error),
                   picture.guide(0, 0, *hr.shape[1:]), rows[:3], rows[3] if picture.samples else None)


def examples(model: VARSR, crops: Iterator[Tensor], degrade: Callable[[int, Tensor], Tensor], samples: int
             ) -> Iterator[Example]:
    """Of every crop (3, S, S) in [0, 1]. degrade: is told the crop's number too."""
    settings = RestoreSettings(model.config.generation, uncertainty=UncertaintySettings(samples))
    for number, hr in enumerate(crops):
        yield example(model, hr, degrade(number, hr), settings)


def luma_error(image: Tensor, reference: Tensor) -> Tensor:
    """Absolute difference of luma (H, W) in levels, of pictures (3, H, W) in [0, 1]."""
    return ((image - reference) * torch.tensor(BT601).view(3, 1, 1)).sum(0).abs() * LEVELS


def blurred(plane: Tensor, sigma: float = BLUR) -> Tensor:
    """A plane (H, W) after a Gaussian blur; edge pixels go on past the edges."""
    reach = int(REACH * sigma)
    weight = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma * sigma))
    weight = weight / weight.sum()
    padded = F.pad(plane[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))[0, 0]
