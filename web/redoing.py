"""Redoing a part of a result on the page: the region that was painted, variants of it, the file of the one chosen."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference.redo import redo_with_tokens, redone_words, require_size
from inference.script import MAKING
from inference.settings import RestoreSettings
from models.varsr import VARSR
from pictures.picture import Picture
from pictures.result_file import ResultFile, ResultOptions
from utils.errors import UserError

from .jobs import MAX_SEED, Tell, Update
from .kept import Result, Variant

VARIANTS = 4
OPAQUE = 0.5  # of a brush's stroke: what is less is not painted
MARGIN, LEAST_SIDE = 0.25, 64  # around the region in what is shown of a variant: a share of its sides, pixels
NOTHING = "nothing is painted: paint the region that shall be drawn anew"


def region_of(layer: Picture, size: tuple[int, int]) -> Tensor:
    """Where (H, W) a layer is painted. Raises UserError where it is nowhere, or the layer has not the result's size."""
    require_size("the painting", (layer.height, layer.width), "the result", size)
    if layer.alpha is None:
        return torch.ones(size, dtype=torch.bool)
    region = torch.from_numpy(layer.alpha >= OPAQUE * np.iinfo(layer.alpha.dtype).max)
    if not region.any():
        raise UserError(NOTHING)
    return region


def draw_variants(model: VARSR, result: Result, region: Tensor, tell: Tell) -> Result:
    """The result with other seeds' variants of a region to choose from, behind it as it is, told one by one.

    Raises Cancelled if `tell` does.
    """
    settings, before = result.settings, result.variant
    generation = settings.generation.varied()
    lr = result.source.region(0, 0, result.source.height, result.source.width)
    choices, part = [before], shown_part(region)
    tell(Update(f"variant 1 of {VARIANTS}", 0.0))
    for index in range(VARIANTS):
        seed = (settings.seed + 1 + result.drawn + index) % (MAX_SEED + 1)
        own = dataclasses.replace(settings, generation=generation, seed=seed)
        restored, state = redo_with_tokens(model, lr, before.state, region, own, before.restored,
                                           _progress(tell, index))
        choices.append(Variant(restored, state, _redone(before.making, own, region)))
        pictures = tuple(choice.restored[part].clamp(0, 1) for choice in choices)
        tell(Update(f"variant {index + 1} of {VARIANTS} (seed {seed})", (index + 1) / VARIANTS, pictures))
    return dataclasses.replace(result, choices=tuple(choices), drawn=result.drawn + VARIANTS)


def _progress(tell: Tell, index: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(Update(f"variant {index + 1} of {VARIANTS}, window {done}", index / VARIANTS))
    return advance


def _redone(making: Sequence[tuple[str, str]], settings: RestoreSettings, region: Tensor
            ) -> tuple[tuple[str, str], ...]:
    """What a variant's file says: what the earlier one says, and what was redone."""
    redone = redone_words(settings, int(region.count_nonzero()) / region.numel())
    return tuple((name, text + redone if name == MAKING else text) for name, text in making)


def shown_part(region: Tensor) -> tuple[slice, slice, slice]:
    """The part of a picture (3, H, W) around a region."""
    return slice(None), *(_around(region.any(dim=1 - axis), length) for axis, length in enumerate(region.shape))


def _around(painted: Tensor, length: int) -> slice:
    """From the first to the last of a row of pixels that is painted, and a bit more."""
    places = painted.nonzero()
    first, last = int(places[0]), int(places[-1]) + 1
    more = max(round((last - first) * MARGIN), (LEAST_SIDE - (last - first)) // 2)
    return slice(max(first - more, 0), min(last + more, length))


def chosen(result: Result, index: int) -> Result:
    """The result with one of its choices in its place. Raises UserError where there is no such one."""
    if index >= len(result.choices):
        raise UserError("there are no variants to choose from (any more): draw some first")
    return Result(result.model, result.source, result.settings, result.name, result.choices[index], result.choices,
                  result.drawn)


def write_result(result: Result, folder: Path) -> Path:
    """The file of a result in `folder`. Pixels that no variant has changed get the samples that they had before, but
    those of lossy kinds. Raises ImageError; nothing half-written is left."""
    restored, options = result.variant.restored, ResultOptions(text=result.variant.making)
    file = ResultFile(folder / result.name, result.source, *restored.shape[1:], options)
    try:
        file.write_rows(0, restored)
        file.finish()
    finally:
        file.discard()
    return file.path
