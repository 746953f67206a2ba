"""Time and judge FastVAR token pruning: drop ratio against speed-up, PSNR and SSIM to the unpruned picture.

    python benchmarks/bench_fastvar.py --preset varsr-d24 --dtype bf16 --output benchmarks/results/fastvar_d24.json
    python benchmarks/bench_fastvar.py --model checkpoints/varsr-tiny --layer_start 1 --output ...
    python benchmarks/bench_fastvar.py --plot docs/images/fastvar.png RESULT.json RESULT.json

A preset runs on random weights and gives speed alone (its pictures mean nothing); a model restores the sample set.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.subject import Subject, add_plot_flag, add_subject_flags, measure_or_draw, row_text

RATIOS = ("0.4,0.3", "0.5,0.5", "0.4,0.6,0.6", "0.5,0.7,0.7", "0.6,0.8,0.8")  # of the last scales


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_flags(parser)
    add_plot_flag(parser)
    parser.add_argument("--ratios", nargs="+", default=RATIOS, help="drop ratios of the last scales, e.g. 0.4,0.3")
    parser.add_argument("--modes", nargs="+", choices=("separate", "shared"), default=("separate", "shared"))
    parser.add_argument("--layer_start", type=int, default=3)
    parser.add_argument("--min_keep", type=int, default=64)
    return parser


def measure(args: argparse.Namespace) -> dict:
    """All settings, compared with the plain run."""
    import dataclasses

    from benchmarks.machine import describe
    from inference.settings import RestoreSettings
    from models.fastvar import FastVARConfig
    subject = Subject(args)
    config = subject.model.config
    plain_settings = RestoreSettings(config.generation, batch_size=subject.batch_size)
    plain_seconds, plain = subject.best(plain_settings)
    print(f"plain {plain_seconds:.2f} s", flush=True)
    rows = []
    for mode in args.modes:
        for text in args.ratios:
            ratios = [float(part) for part in text.split(",")]
            pruning = FastVARConfig.for_last(config.vqvae.scales, ratios, mode=mode, min_keep=args.min_keep,
                                             later_layer_start=args.layer_start)
            seconds, results = subject.best(dataclasses.replace(plain_settings, fastvar=pruning))
            rows.append({"mode": mode, "ratios": ratios, "seconds": seconds, "speedup": plain_seconds / seconds,
                         **subject.agreement(results, plain)})
            print(row_text(rows[-1]), flush=True)
    return {"model": args.model or args.preset, "dtype": args.dtype, "device": args.device,
            "pictures": len(subject.pictures), "layer_start": args.layer_start, "min_keep": args.min_keep,
            "plain_seconds": plain_seconds, "machine": describe(subject.model.device), "settings": rows}


def draw(target: str, sources: list[str]) -> None:
    """Curves of every result file: speed-up, and PSNR and SSIM where they are known, by the last drop ratio."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    titles = {"speedup": "speed-up over no pruning", "psnr_y": "PSNR-Y to the unpruned picture, dB",
              "ssim_y": "SSIM-Y to the unpruned picture"}
    figure, axes = pyplot.subplots(1, len(titles), figsize=(13, 4))
    for source in sources:
        result = json.loads(Path(source).read_text(encoding="utf-8"))
        for mode in dict.fromkeys(row["mode"] for row in result["settings"]):
            rows = [row for row in result["settings"] if row["mode"] == mode]
            for axis, key in zip(axes, titles):
                known = [row for row in rows if key in row]
                if known:
                    axis.plot([row["ratios"][-1] for row in known], [row[key] for row in known], marker="o",
                              label=f"{Path(result['model']).name}, {mode}")
    for axis, title in zip(axes, titles.values()):
        axis.set_xlabel("drop ratio of the last scale")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100)


def main(argv: list[str] | None = None) -> int:
    """Measure, or draw what was measured."""
    return measure_or_draw(build_parser(), argv, measure, draw)


if __name__ == "__main__":
    sys.exit(main())
