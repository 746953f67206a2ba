"""Restoring a picture in memory: the engine of the scripts, from tensor to tensor."""
from __future__ import annotations

import torch
from torch import Tensor

from models.varsr import VARSR
from pictures.rgb import TensorSource, result_size
from utils.errors import UserError

from .generate import Progress, batch_size_for, generate_windows
from .render import COLOR_FIXES, render
from .settings import RestoreSettings
from .tokens import Making, TokenState, digest, require_codes
from .windows import TiledPicture


def restore(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None = None,
            size: tuple[int, int] | None = None) -> Tensor:
    """Restore an LR picture (3, h, w) in [0, 1] to (3, H, W), float32 on the CPU.

    size: (H, W), by default the LR picture's times the settings' scale. Results larger than the model's window are
    made of overlapping windows, smaller ones are padded and cropped; the aspect is never changed. The result depends
    on the picture, the seed and the other settings, not on the batch size. Raises ValueError for an unknown colour
    fix.
    """
    return _restored(model, lr, settings, progress, size, False)[0]


def restore_with_tokens(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None = None,
                        size: tuple[int, int] | None = None) -> tuple[Tensor, TokenState]:
    """As `restore`, and what the picture was drawn as, for `redo.redo`. Raises ValueError for a model that mixes
    codes (`more_smooth`)."""
    require_codes(settings.generation)
    restored, picture = _restored(model, lr, settings, progress, size, True)
    making = Making((picture.height, picture.width), digest(picture.source), settings.overlap, settings.seed,
                    settings.generation, settings.color_fix)
    return restored, TokenState(making, picture.codes, picture.finished, len(picture.grid))


def _restored(model: VARSR, lr: Tensor, settings: RestoreSettings, progress: Progress | None,
              size: tuple[int, int] | None, keep_codes: bool) -> tuple[Tensor, TiledPicture]:
    """The restored picture and its windows."""
    if settings.color_fix not in COLOR_FIXES:
        raise UserError(f"unknown colour fix {settings.color_fix!r}: choose one of {', '.join(COLOR_FIXES)}")
    source = TensorSource(lr)
    picture = TiledPicture(source, size or result_size(source, settings.generation.scale), model.config,
                           settings.overlap)
    picture.codes = {} if keep_codes else None
    batch = batch_size_for(model, settings)
    generate_windows(model, [(picture, window) for window in picture.grid], settings, batch, progress)
    bands = render(model, picture, picture.finished, settings.color_fix, batch, fidelity=settings.generation.fidelity,
                   consistency=settings.lr_consistency)
    return torch.cat([rows for _, rows in bands], dim=1), picture
