"""Time and judge generation with fewer operations: late guidance, fewer refiner steps, token pruning, all of them.

    python benchmarks/bench_fast.py --preset varsr-d24 --output benchmarks/results/cpu_fast_varsr-d24_bf16.json
    python benchmarks/bench_fast.py --model checkpoints/varsr-tiny --cfg 2 --output ...
    python benchmarks/bench_fast.py --plot docs/images/speed.png RESULT.json RESULT.json

A preset runs on random weights and gives speed alone (its pictures mean nothing); a model restores the sample set.
"""
from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.subject import Subject, add_plot_flag, add_subject_flags, measure_or_draw, row_text

LIGHT, STRONG = (0.4, 0.6, 0.6), (0.6, 0.8, 0.8)  # drop ratios of the last scales


@dataclass(frozen=True)
class Point:
    """One setting: how many of the last scales are guided, refiner steps, drop ratios; None is the model's own."""

    guided_scales: int | None = None
    refiner_steps: int | None = None
    drop_ratios: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """For tables and plots."""
        parts = [f"guided {self.guided_scales}" if self.guided_scales else "",
                 f"refiner {self.refiner_steps}" if self.refiner_steps else "",
                 f"drop {self.drop_ratios[-1]:g}" if self.drop_ratios else ""]
        return ", ".join(part for part in parts if part) or "plain"


POINTS = (Point(guided_scales=3), Point(guided_scales=2), Point(guided_scales=1), Point(refiner_steps=6),
          Point(refiner_steps=4), Point(refiner_steps=2), Point(drop_ratios=LIGHT), Point(drop_ratios=STRONG),
          Point(2, 4), Point(1, 4), Point(2, 4, LIGHT), Point(1, 4, LIGHT), Point(1, 4, STRONG))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_flags(parser)
    add_plot_flag(parser)
    parser.add_argument("--cfg", type=float, help="guidance (the model's own default)")
    return parser


def measure(args: argparse.Namespace) -> dict:
    """All points, compared with the plain run."""
    from benchmarks.machine import describe
    from inference.settings import RestoreSettings, fast_pruning
    subject = Subject(args)
    config = subject.model.config
    options = config.generation if args.cfg is None else replace(config.generation, cfg=args.cfg)
    plain_settings = RestoreSettings(options, batch_size=subject.batch_size)
    plain_seconds, plain = subject.best(plain_settings)
    rows = [{"name": Point().name, "seconds": plain_seconds, "speedup": 1.0}]
    print(row_text(rows[0]), flush=True)
    for point in POINTS:
        if point.guided_scales and not options.cfg:
            continue
        first = len(config.vqvae.scales) - point.guided_scales if point.guided_scales else options.cfg_from_scale
        settings = replace(
            plain_settings,
            generation=replace(options, cfg_from_scale=first, refiner_steps=point.refiner_steps),
            fastvar=fast_pruning(config, point.drop_ratios) if point.drop_ratios else None)
        seconds, results = subject.best(settings)
        rows.append({"name": point.name, **asdict(point), "seconds": seconds, "speedup": plain_seconds / seconds,
                     **subject.agreement(results, plain)})
        print(row_text(rows[-1]), flush=True)
    return {"model": args.model or args.preset, "dtype": args.dtype, "device": args.device, "cfg": options.cfg,
            "pictures": len(subject.pictures), "machine": describe(subject.model.device), "settings": rows}


def draw(target: str, sources: list[str]) -> None:
    """Seconds of every setting where pictures mean nothing; PSNR over speed-up where they do."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5))
    for source in sources:
        result = json.loads(Path(source).read_text(encoding="utf-8"))
        label, rows = f"{Path(result['model']).name}, cfg {result['cfg']:g}", result["settings"]
        judged = [row for row in rows if "psnr_y" in row]
        if not judged:
            axes[0].barh([row["name"] for row in rows], [row["seconds"] for row in rows], label=label)
            continue
        axes[1].scatter([row["speedup"] for row in judged], [row["psnr_y"] for row in judged], label=label)
        for row in judged:
            axes[1].annotate(row["name"], (row["speedup"], row["psnr_y"]), fontsize=7, xytext=(3, 3),
                             textcoords="offset points")
    axes[0].invert_yaxis()
    for axis, title, unit in zip(axes, ("random weights of the published size", "embedded model, sample set"),
                                 ("seconds", "speed-up; upwards: PSNR-Y to the plain run, dB")):
        axis.set_title(title)
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=100)


def main(argv: list[str] | None = None) -> int:
    """Measure, or draw what was measured."""
    return measure_or_draw(build_parser(), argv, measure, draw)


if __name__ == "__main__":
    sys.exit(main())
