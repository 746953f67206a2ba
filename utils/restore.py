"""From an LR picture of any size to its restoration: the engine that every script shares."""
from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import GenerationConfig
from models.fastvar import FastVARConfig
from models.varsr import VARSR, ScaleStep

from .color import COLOR_FIXES
from .windows import Blend, Window, WindowGrid

Progress = Callable[[int], None]  # called with the number of windows just finished
ScaleExport = Callable[[int, Tensor], None]  # called with a scale's side and the picture (3, H, W) after it


@dataclass(frozen=True)
class RestoreSettings:
    """How pictures are restored, beyond the model's own sampling settings."""

    generation: GenerationConfig
    seed: int = 0
    batch_size: int = 4
    color_fix: str = "wavelet"
    fastvar: FastVARConfig | None = None  # token pruning
    export_max: int = 0  # largest side of the scales whose pictures `restore` hands out, beside the last one's


def upsample(lr: Tensor, scale: float) -> Tensor:
    """Bicubic resize of (3, h, w) by `scale`: (3, round(h·scale), round(w·scale)) in [0, 1], at least one pixel."""
    size = tuple(max(round(side * scale), 1) for side in lr.shape[-2:])
    resized = F.interpolate(lr[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized[0].clamp(0, 1)


def pad_to(picture: Tensor, size: int) -> Tensor:
    """Extend (3, H, W) right and bottom to at least `size` a side, by its own edge pixels."""
    missing = [max(size - side, 0) for side in picture.shape[-2:]]
    return F.pad(picture[None], (0, missing[1], 0, missing[0]), mode="replicate")[0]


def window_seed(seed: int, place: Window) -> int:
    """A seed of its own for each window, the same in whichever batch it is."""
    return zlib.crc32(f"{seed}/{place.row}/{place.column}".encode())


def window_grid(model: VARSR, height: int, width: int) -> WindowGrid:
    """The windows of an output of this size (padded to one window where it is smaller)."""
    size = model.config.image_size
    return WindowGrid(max(height, size), max(width, size), size)


def _batches(grid: WindowGrid, batch_size: int) -> Iterator[list[Window]]:
    places = list(grid)
    for start in range(0, len(places), batch_size):
        yield places[start:start + batch_size]


def restore(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None = None,
            export: ScaleExport | None = None) -> Tensor:
    """Restore an LR picture (3, h, w) in [0, 1] to (3, round(h·scale), round(w·scale)), float32 on the CPU.

    Outputs larger than the model's window are made of overlapping windows, smaller ones are padded and cropped; the
    aspect is never changed. The result depends on the picture, the settings' seed and options, not on batch_size.
    export: called at the end with the picture after each scale up to `settings.export_max`, then with the result as
    the last scale's.
    """
    if settings.color_fix not in COLOR_FIXES:
        raise ValueError(f"unknown colour fix {settings.color_fix!r}: choose one of {', '.join(COLOR_FIXES)}")
    guide = upsample(lr, settings.generation.scale)
    padded = pad_to(guide, model.config.image_size)
    grid = window_grid(model, *guide.shape[-2:])
    sides = [side for side in model.config.vqvae.scales[:-1] if side <= settings.export_max] if export else []
    blends = {side: Blend(grid) for side in (*sides, model.config.vqvae.side)}
    for places in _batches(grid, settings.batch_size):
        windows = torch.stack([grid.cut(padded, place) for place in places])
        for side, pictures in _generate(model, windows, places, settings, sides).items():
            for place, values in zip(places, pictures, strict=True):
                blends[side].add(place, values)
        if progress is not None:
            progress(len(places))
    results = {side: _finish(blend, guide, settings.color_fix) for side, blend in blends.items()}
    if export is not None:
        for side, picture in results.items():
            export(side, picture)
    return results[model.config.vqvae.side]


def _generate(model: VARSR, windows: Tensor, places: list[Window], settings: RestoreSettings,
              sides: Sequence[int]) -> dict[int, Tensor]:
    """Pictures of a batch of windows after the scales of these sides, and the finished ones, by side."""
    latents: dict[int, Tensor] = {}

    def keep(step: ScaleStep) -> None:
        if step.side in sides:
            latents[step.side] = step.f_hat
    seeds = [window_seed(settings.seed, place) for place in places]
    finished = model.generate(windows, options=settings.generation, seed=seeds, on_scale=keep,
                              fastvar=settings.fastvar)
    return {**{side: model.decode(latent, windows) for side, latent in latents.items()},
            model.config.vqvae.side: finished}


def _finish(blend: Blend, guide: Tensor, color_fix: str) -> Tensor:
    height, width = guide.shape[-2:]
    return COLOR_FIXES[color_fix](blend.result()[:, :height, :width], guide)
