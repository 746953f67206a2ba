"""Restoring a picture in memory: the engine of the scripts, from tensor to tensor."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.varsr import VARSR
from pictures.rgb import TensorSource, result_size
from utils.errors import UserError

from .generate import BatchSize, Progress, batch_size_for, generate_windows
from .products import keep_evidence, rendered, rows_with_errors
from .render import COLOR_FIXES
from .settings import RestoreSettings, UncertaintySettings
from .tokens import Making, TokenState, digest, require_codes
from .uncertainty import ErrorMap
from .windows import TiledPicture


def restore(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None = None,
            size: tuple[int, int] | None = None) -> Tensor:
    """Restore an LR picture (3, h, w) in [0, 1] to (3, H, W), float32 on the CPU.

    size: (H, W), by default the LR picture's times the settings' scale. Results larger than the model's window are
    made of overlapping windows, smaller ones are padded and cropped; the aspect is never changed. The result depends
    on the picture, the seed and the other settings, not on the batch size. Raises ValueError for an unknown colour
    fix, and for a tensor or a size that is none of a picture.
    """
    return _restored(model, lr, settings, progress, size, False)[0]


def restore_with_tokens(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None = None,
                        size: tuple[int, int] | None = None) -> tuple[Tensor, TokenState]:
    """As `restore`, and what the picture was drawn as, for `redo.redo`. Raises ValueError for a model that mixes
    codes (`more_smooth`)."""
    require_codes(settings.generation)
    restored, picture = _restored(model, lr, settings, progress, size, True)
    making = Making((picture.height, picture.width), digest(picture.source), settings.overlap, settings.seed,
                    settings.generation, settings.color_fix, weights=model.fingerprint())
    return restored, TokenState(making, picture.codes, picture.finished, len(picture.grid))


def restore_with_errors(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None = None,
                        size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, ErrorMap]:
    """As `restore`, and how far it may be from the truth: (H, W), the expected absolute error of luma in levels of 0 to
    255; and the map that it is of, which knows what its numbers are (`description`, `strangeness`). The settings say
    how it is made (`uncertainty`; without, from one generation and uncalibrated)."""
    if settings.uncertainty is None:
        settings = replace(settings, uncertainty=UncertaintySettings())
    picture, batch = generated(model, lr, settings, progress, size, False)
    error, bands = ErrorMap(picture, settings.uncertainty), []
    errors = rows_with_errors(model, picture, settings, batch, error, lambda _, rows: bands.append(rows))
    levels = torch.cat([rows for _, rows in errors], dim=1)[0]  # the picture's rows come on the way
    return torch.cat(bands, dim=1), levels, error


def _restored(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None,
              size: tuple[int, int] | None, keep_codes: bool) -> tuple[Tensor, TiledPicture]:
    """The restored picture and its windows."""
    picture, batch = generated(model, lr, replace(settings, uncertainty=None), progress, size, keep_codes)
    bands = rendered(model, picture, settings, batch, picture.finished)
    return torch.cat([rows for _, rows in bands], dim=1), picture


def generated(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None = None,
              size: tuple[int, int] | None = None, keep_codes: bool = False) -> tuple[TiledPicture, BatchSize]:
    """The picture, not rendered yet, with all that its windows were generated as and that the settings keep."""
    if settings.color_fix not in COLOR_FIXES:
        raise UserError(f"unknown colour fix {settings.color_fix!r}: choose one of {', '.join(COLOR_FIXES)}")
    if size is not None and min(size) < 1:
        raise UserError(f"a size of {size}: must be (height, width), 1 or more each")
    source = TensorSource(lr)
    picture = TiledPicture(source, size or result_size(source, settings.generation.scale), model.config,
                           settings.overlap)
    picture.codes = {} if keep_codes else None
    keep_evidence(picture, settings, lambda name, channels: {})
    batch = batch_size_for(model, settings)
    generate_windows(model, [(picture, window) for window in picture.grid], settings, batch, progress)
    return picture, batch
