"""The comparison of pruned generation with the plain one."""
from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from models.varsr import VARSR

    from .report import Started
    from .settings import RestoreSettings


@dataclass(frozen=True)
class Comparison:
    """One picture, pruned and plain: seconds each, and the PSNR-Y in dB between the two."""

    pruned_seconds: float
    plain_seconds: float
    psnr_y: float


class FastVARComparison:
    """A `runner.Extra` that restores every finished picture again without pruning and compares."""

    def __init__(self, model: VARSR, settings: RestoreSettings) -> None:
        self.model, self.comparisons = model, []
        self.plain_settings = dataclasses.replace(settings, fastvar=None)
        self._warm_up(settings)

    def _warm_up(self, settings: RestoreSettings) -> None:
        """One window each way, so that the first picture is not timed with the libraries' preparations."""
        import torch

        from .restore import restore
        side = self.model.config.image_size
        for each in (settings, self.plain_settings):
            restore(self.model, torch.zeros(3, side, side), each, size=(side, side))

    def __call__(self, started: Started) -> dict[str, Tensor]:
        from evaluation.metrics.full_reference import psnr_y
        from pictures.rgb import laid_over_white, read_image

        from .restore import restore
        picture, record, tiled = started.picture, started.record, started.tiled
        lr = picture.region(0, 0, picture.height, picture.width)
        start = time.perf_counter()
        plain = restore(self.model, lr, self.plain_settings, size=(tiled.height, tiled.width))
        plain_seconds = time.perf_counter() - start
        plain = laid_over_white(plain, picture)
        self.comparisons.append(Comparison(record.generate_seconds + record.render_seconds, plain_seconds,
                                           psnr_y(read_image(started.job.output), plain)))
        return {"VARSR": plain}

    def line(self) -> str:
        """Seconds saved over all pictures, and the mean PSNR-Y between pruned and plain."""
        pruned = sum(c.pruned_seconds for c in self.comparisons)
        plain = sum(c.plain_seconds for c in self.comparisons)
        psnr = sum(c.psnr_y for c in self.comparisons) / len(self.comparisons)
        return (f"FastVAR {pruned:.2f} s, plain {plain:.2f} s: {plain - pruned:.2f} s saved, {plain / pruned:.2f}x; "
                f"PSNR-Y between them {psnr:.2f} dB")
