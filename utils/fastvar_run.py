"""Restoring with token pruning: the pruning report, per-scale pictures, the comparison with the plain run."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.fastvar import PrunedScale
from models.varsr import VARSR

from .images import write_image
from .inputs import Job
from .metrics import psnr_y
from .restore import Progress, RestoreSettings, ScaleExport, restore


@dataclass(frozen=True)
class Comparison:
    """One picture, pruned and plain: seconds each, and the PSNR-Y in dB between the two."""

    pruned_seconds: float
    plain_seconds: float
    psnr_y: float


class FastVARRestorer:
    """A `runner.Restorer` with pruning; with `compare` it also runs every picture without."""

    def __init__(self, model: VARSR, settings: RestoreSettings, compare: bool, export: bool) -> None:
        self.model, self.settings, self.compare, self.export = model, settings, compare, export
        self.comparisons: list[Comparison] = []

    def __call__(self, job: Job, lr: Tensor, progress: Progress) -> dict[str, Tensor]:
        folder = job.output.with_name(f"{job.output.stem}_scales")

        def write_scale(side: int, picture: Tensor) -> None:
            write_image(folder / f"side{side}.png", picture)
        export = write_scale if self.export else None
        if not self.compare:
            return {"VARSR": restore(self.model, lr, self.settings, progress, export)}
        return self._compared(lr, progress, export)

    def _compared(self, lr: Tensor, progress: Progress, export: ScaleExport | None) -> dict[str, Tensor]:
        """Pruned and plain result, timed without the export and, for the first picture, after a warm-up."""
        plain_settings = dataclasses.replace(self.settings, fastvar=None)
        if not self.comparisons:
            restore(self.model, lr, plain_settings)
        pruned, pruned_seconds = _timed(lambda: restore(self.model, lr, self.settings, progress))
        plain, plain_seconds = _timed(lambda: restore(self.model, lr, plain_settings))
        self.comparisons.append(Comparison(pruned_seconds, plain_seconds, psnr_y(pruned, plain)))
        if export is not None:
            restore(self.model, lr, self.settings, export=export)
        return {"FastVAR": pruned, "VARSR": plain}

    def plan_lines(self) -> list[str]:
        """What is pruned, a line a scale."""
        if self.settings.fastvar is None:
            return ["FastVAR off (--fastvar turns it on)"]
        config = self.model.config
        plan = self.settings.fastvar.plan(config.vqvae.scales, config.transformer.depth)
        lines = [_plan_line(row, config.transformer.depth) for row in plan]
        return lines or ["FastVAR drops nothing with these settings"]

    def comparison_line(self) -> str:
        """Seconds saved over all pictures, and the mean PSNR-Y between pruned and plain."""
        pruned = sum(c.pruned_seconds for c in self.comparisons)
        plain = sum(c.plain_seconds for c in self.comparisons)
        psnr = sum(c.psnr_y for c in self.comparisons) / len(self.comparisons)
        return (f"FastVAR {pruned:.2f} s, plain {plain:.2f} s: {plain - pruned:.2f} s saved, {plain / pruned:.2f}x; "
                f"PSNR-Y between them {psnr:.2f} dB")


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def _plan_line(row: PrunedScale, depth: int) -> str:
    return (f"FastVAR side {row.side}: {row.layers} of {depth} layers pruned, "
            f"{row.kept} of {row.total} tokens kept in each")
