"""Windows of one or several pictures through the model, in batches."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from models.config import GenerationConfig
from models.fastvar import FastVARConfig
from models.varsr import VARSR, ScaleStep

from .batching import BatchSize, is_out_of_memory
from .tiles import TiledPicture, place_seed, refiner_noise
from .windows import MIN_OVERLAP, Window

Progress = Callable[[int], None]  # called with the number of windows just finished
Work = Sequence[tuple[TiledPicture, Window]]
OnScale = Callable[[Work, ScaleStep], None]  # called after each scale with the windows whose rows the step holds


@dataclass(frozen=True)
class RestoreSettings:
    """How pictures are restored, beyond the model's own sampling settings."""

    generation: GenerationConfig
    seed: int = 0
    batch_size: int | None = None  # windows at a time; None: found from the free memory
    color_fix: str = "wavelet"
    overlap: float = MIN_OVERLAP  # of neighbouring windows
    fastvar: FastVARConfig | None = None  # token pruning


def generate_windows(model: VARSR, work: Work, settings: RestoreSettings, batch: BatchSize,
                     progress: Progress | None = None, on_scale: OnScale | None = None) -> None:
    """Generate the latents of windows, whichever pictures they belong to, into the pictures' stores.

    A window's latent depends on its picture, its place and the settings, not on the others in the batch. Running out
    of memory halves the batch and goes on; only a single window that does not fit raises. What `on_scale` raises ends
    the run.
    """
    done = 0
    while done < len(work):
        part = work[done:done + batch.size]
        try:
            _generate(model, part, settings, on_scale)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            batch.halve()
            continue
        done += len(part)
        if progress is not None:
            progress(len(part))


def _generate(model: VARSR, part: Work, settings: RestoreSettings, on_scale: OnScale | None) -> None:
    windows = [window for _, window in part]
    guides = torch.stack([picture.window_guide(window) for picture, window in part])

    watched = on_scale is not None or any(set(picture.latents) - {picture.config.vqvae.side} for picture, _ in part)

    def keep(step: ScaleStep) -> None:
        for (picture, window), latent in zip(part, step.f_hat, strict=True):
            if step.side in picture.latents and step.side != picture.config.vqvae.side:
                picture.latents[step.side][window.index] = latent.cpu()
        if on_scale is not None:
            on_scale(part, step)
    noise = refiner_noise(model.config, settings.seed, windows, model.config.refiner_steps(settings.generation))
    seeds = [place_seed(settings.seed, window.top, window.left) for window in windows]
    latents = model.generate_latent(guides, options=settings.generation, seed=seeds, refiner_noise=noise,
                                    on_scale=keep if watched else None, fastvar=settings.fastvar).float().cpu()
    for (picture, window), latent in zip(part, latents, strict=True):
        picture.finished[window.index] = latent
