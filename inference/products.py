"""What is written of a picture whose windows are generated: its rows and, where asked for, the map of their errors."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from models.varsr import VARSR
from pictures.file_reader import Metadata
from pictures.picture import Picture
from pictures.result_file import TOP_16, ResultFile, ResultOptions

from .generate import BatchSize
from .render import PART, Band, filtered, render
from .settings import RestoreSettings
from .uncertainty import ErrorMap, with_spread
from .windows import LatentStore, TiledPicture

log = logging.getLogger(__name__)

STEPS = 256  # of a map's file to a level
ERROR_TEXT = "uncertainty"  # keyword of what a map's file says of itself


def keep_evidence(tiled: TiledPicture, settings: RestoreSettings, store: Callable[[str, int], LatentStore]) -> None:
    """Give a picture the stores that its map needs. store: makes one of maps of so many channels, by a name."""
    if settings.uncertainty is not None:
        tiled.evidence = store("evidence", 2 * len(tiled.config.vqvae.scales))
        tiled.samples = [store(f"sample{i}", tiled.config.vqvae.latent_channels)
                         for i in range(settings.uncertainty.samples)]


def rendered(model: VARSR, tiled: TiledPicture, settings: RestoreSettings, batch: BatchSize, latents: LatentStore,
             top: int = 0, bottom: int | None = None) -> Iterator[Band]:
    """Rows [top, bottom) of a picture as the settings want them, from one of its sets of latents."""
    return render(model, tiled, latents, settings.color_fix, batch, top, bottom, settings.generation.fidelity,
                  settings.lr_consistency)


def rendered_with_spread(model: VARSR, tiled: TiledPicture, settings: RestoreSettings, batch: BatchSize, top: int = 0,
                         bottom: int | None = None) -> Iterator[Band]:
    """Rows [top, bottom) of the finished picture, with the spread of its further results, if any, behind them."""
    bands, *others = (rendered(model, tiled, settings, batch, latents, top, bottom)
                      for latents in (tiled.finished, *tiled.samples))
    return with_spread(bands, others) if others else bands


def rows_with_errors(model: VARSR, tiled: TiledPicture, settings: RestoreSettings, batch: BatchSize, error: ErrorMap,
                     write: Callable[[int, Tensor], None], top: int = 0, bottom: int | None = None) -> Iterator[Band]:
    """The expected errors of rows [top, bottom), (1, n, W) in levels. The rows themselves, (3, n, W), are given to
    `write` on the way, always before their errors come out."""
    bottom = tiled.height if bottom is None else bottom

    def passing(first: int, last: int) -> Iterator[Band]:
        for start, band in rendered_with_spread(model, tiled, settings, batch, first, last):
            inside = band[:3, max(top - start, 0):max(bottom - start, 0)]
            if inside.shape[1]:
                write(max(start, top), inside)
            yield start, band
    return filtered(passing, error, error.reach, top, bottom, tiled.height, PART)


@dataclass
class ErrorProduct:
    """The map of a picture's expected errors, and its file: 16-bit gray, 256 steps a level."""

    map: ErrorMap
    file: ResultFile

    @classmethod
    def beside(cls, path: Path, tiled: TiledPicture, settings: RestoreSettings, options: ResultOptions,
               spool: Path | None = None) -> ErrorProduct | None:
        """Of a result, where the settings ask for one. spool: see `ResultFile`."""
        if settings.uncertainty is None:
            return None
        gray = Picture(np.zeros((1, 1, 1), np.uint16), None, True, Metadata(), "png")
        return cls(ErrorMap(tiled, settings.uncertainty),
                   ResultFile(path, gray, tiled.height, tiled.width, options, spool))

    def write(self, top: int, errors: Tensor) -> None:
        """Store rows (1, n, W) of the map, in levels."""
        self.file.write_rows(top, (errors * (STEPS / TOP_16)).clamp(0, 1).expand(3, -1, -1))

    def finish(self) -> None:
        """Write the file, with what the map is; warn where the picture is unlike those it was calibrated on."""
        text = (*self.file.options.text, (ERROR_TEXT, f"value / {STEPS} = {self.map.description}"))
        self.file.options = replace(self.file.options, text=text)
        self.file.finish()
        if self.map.warning is not None:
            log.warning("%s: %s", self.file.path, self.map.warning)


def write_rows(model: VARSR, tiled: TiledPicture, settings: RestoreSettings, batch: BatchSize, result: ResultFile,
               error: ErrorProduct | None, top: int, bottom: int) -> Iterator[int]:
    """Render rows [top, bottom) of a picture into its files; yields the row up to which everything is written."""
    if error is None:
        for first, rows in rendered(model, tiled, settings, batch, tiled.finished, top, bottom):
            result.write_rows(first, rows)
            yield first + rows.shape[1]
    else:
        for first, errors in rows_with_errors(model, tiled, settings, batch, error.map, result.write_rows, top, bottom):
            error.write(first, errors)
            yield first + errors.shape[1]
