"""Examples of a model's errors: crops of photographs, degraded, restored, and compared with the truth."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloader.photo_crops import PhotoCrops
from evaluation.metrics.full_reference import gaussian_taps, smooth
from inference.products import rendered_with_spread
from inference.restore import generated
from inference.settings import RestoreSettings, UncertaintySettings
from inference.uncertainty import CELL, ErrorMap
from models.varsr import VARSR
from pictures.rgb import LEVELS_8, luma_levels

from .degradations import PERIOD

BLUR = 3.0  # pixels, of the errors that a map is compared with
REACH = 3  # deviations of the blur

CROP_WINDOWS = 1.5  # a crop's side, so that windows overlap as in pictures

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
    rows = torch.cat([band for _, band in rendered_with_spread(model, picture, settings, batch)], dim=1)
    error = luma_error(rows[:3], hr)
    return Example(ErrorMap(picture, settings.uncertainty).inputs_of(rows, 0), error, blurred(error),
                   picture.guide(0, 0, *hr.shape[1:]), rows[:3], rows[3] if picture.samples else None)


def examples(model: VARSR, crops: Iterator[Tensor], degrade: Callable[[int, Tensor], Tensor], samples: int
             ) -> Iterator[Example]:
    """Of every crop (3, S, S) in [0, 1]. degrade: is told the crop's number too."""
    settings = RestoreSettings(model.config.generation, uncertainty=UncertaintySettings(samples))
    for number, hr in enumerate(crops):
        yield example(model, hr, degrade(number, hr), settings)


def random_crops(photographs: Sequence[str | Path], size: int, count: int, seed: int) -> Iterator[Tensor]:
    """Crops (3, size, size) in [0, 1], whatever their sharpness, of several folders (`PhotoCrops`) in turns."""
    sources = [PhotoCrops(folder, size, min_sharpness=0.0) for folder in photographs]
    for position in range(count):
        turn = position + position // PERIOD  # in each period another folder begins: all meet all degradations
        pixels, _ = sources[turn % len(sources)].sample(position, seed)
        yield torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / LEVELS_8


def luma_error(image: Tensor, reference: Tensor) -> Tensor:
    """Absolute difference of luma (H, W) in levels, of pictures (3, H, W) in [0, 1]."""
    return luma_levels(image - reference).abs()


def blurred(plane: Tensor, sigma: float = BLUR) -> Tensor:
    """A plane (H, W) after a Gaussian blur; edge pixels go on past the edges."""
    reach = int(REACH * sigma)
    padded = F.pad(plane[None, None], (reach,) * 4, mode="replicate")
    return smooth(padded, gaussian_taps(2 * reach + 1, sigma, plane))[0, 0]
