"""FastVAR in the scripts: its flags, the report of what is pruned, the comparison with the plain run."""
from __future__ import annotations

import argparse
import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .flags import bounded

if TYPE_CHECKING:
    from torch import Tensor

    from models.fastvar import FastVARConfig, PrunedScale
    from models.varsr import VARSR

    from .generation import RestoreSettings
    from .started import Started


def add_fastvar_flags(parser: argparse.ArgumentParser) -> None:
    """What is pruned."""
    ratio = bounded(float, 0, 1, open_high=True)
    add = parser.add_argument
    add("--fastvar", action="store_true", help="prune tokens")
    add("--fastvar_second_last_ratio", type=ratio, default=0.4, help="drop ratio of the last scale but one (0.4)")
    add("--fastvar_last_ratio", type=ratio, default=0.3, help="drop ratio of the last scale (0.3)")
    add("--fastvar_ratios", type=ratio, nargs="+", metavar="RATIO",
        help="drop ratios of the last scales, the last one last, instead of the two above")
    add("--fastvar_later_layer_start", type=bounded(int, 0), default=3, help="first layer that is pruned (3)")
    add("--fastvar_min_keep", type=bounded(int, 1), default=64, help="tokens that stay in any case (64)")
    add("--fastvar_mode", choices=("separate", "shared"), default="separate",
        help="separate: attention and feed-forward choose tokens for themselves; shared: one choice a layer, faster")
    add("--fastvar_quiet", action="store_true", help="do not say what is pruned")


def fastvar_config(args: argparse.Namespace, model: VARSR) -> FastVARConfig | None:
    """What the flags prune, None without --fastvar. Raises ValueError for ratios that do not fit the model."""
    from models.fastvar import FastVARConfig
    ratios = args.fastvar_ratios or (args.fastvar_second_last_ratio, args.fastvar_last_ratio)
    config = FastVARConfig.for_last(
        model.config.vqvae.scales, ratios, later_layer_start=args.fastvar_later_layer_start,
        min_keep=args.fastvar_min_keep, mode=args.fastvar_mode)
    return config if args.fastvar else None


def plan_lines(model: VARSR, config: FastVARConfig | None) -> list[str]:
    """What is pruned, a line a scale."""
    if config is None:
        return ["FastVAR off (--fastvar turns it on)"]
    depth = model.config.transformer.depth
    lines = [_plan_line(row, depth) for row in config.plan(model.config.vqvae.scales, depth)]
    return lines or ["FastVAR drops nothing with these settings"]


def _plan_line(row: PrunedScale, depth: int) -> str:
    return (f"FastVAR side {row.side}: {row.layers} of {depth} layers pruned, "
            f"{row.kept} of {row.total} tokens kept in each")


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
        from pictures.rgb import read_image

        from .restore import restore
        picture, record, tiled = started.picture, started.record, started.tiled
        lr = picture.region(0, 0, picture.height, picture.width)
        start = time.perf_counter()
        plain = restore(self.model, lr, self.plain_settings, size=(tiled.height, tiled.width))
        plain_seconds = time.perf_counter() - start
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
