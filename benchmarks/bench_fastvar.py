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
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import DTYPES

SAMPLES = Path(__file__).resolve().parent.parent / "testset" / "sample" / "LR"
RATIOS = ("0.4,0.3", "0.5,0.5", "0.4,0.6,0.6", "0.5,0.7,0.7", "0.6,0.8,0.8")  # of the last scales


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="a preset of models/config.py, on random weights: speed alone")
    parser.add_argument("--model", help="a model folder, published file or hub id: speed and quality")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--ratios", nargs="+", default=RATIOS, help="drop ratios of the last scales, e.g. 0.4,0.3")
    parser.add_argument("--modes", nargs="+", choices=("separate", "shared"), default=("separate", "shared"))
    parser.add_argument("--layer_start", type=int, default=3)
    parser.add_argument("--min_keep", type=int, default=64)
    parser.add_argument("--runs", type=int, default=1, help="timed runs of each setting; the fastest counts")
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--plot", nargs="+", metavar="FILE", help="draw: the PNG, then the results to draw")
    return parser


def restore_all(model, settings, pictures) -> tuple[float, list]:
    """Seconds and results for a list of LR pictures."""
    from utils.restore import restore
    start = time.perf_counter()
    results = [restore(model, lr, settings) for lr in pictures]
    return time.perf_counter() - start, results


def measure(args: argparse.Namespace) -> dict:
    """All settings, compared with the plain run."""
    import dataclasses

    import torch

    from benchmarks.bench_generate import random_model
    from benchmarks.machine import describe
    from models.fastvar import FastVARConfig
    from models.varsr import VARSR
    from utils.allocator import keep_freed_memory
    from utils.images import read_image
    from utils.metrics import psnr_y, ssim_y
    from utils.restore import RestoreSettings
    keep_freed_memory()
    device, dtype = torch.device(args.device), getattr(torch, DTYPES[args.dtype])
    if args.model:
        model = VARSR.from_pretrained(args.model, dtype=dtype, device=device)
        pictures = [read_image(path) for path in sorted(SAMPLES.iterdir())]
    else:
        model = random_model(args.preset, dtype, device)
        side = round(model.config.image_size / model.config.generation.scale)
        pictures = [torch.rand(3, side, side)]
    plain_settings = RestoreSettings(model.config.generation, batch_size=4 if args.model else 1)

    def best(settings) -> tuple[float, list]:
        return min((restore_all(model, settings, pictures) for _ in range(args.runs)), key=lambda run: run[0])
    restore_all(model, plain_settings, pictures)  # warm-up
    plain_seconds, plain = best(plain_settings)
    rows = []
    for mode in args.modes:
        for text in args.ratios:
            ratios = [float(part) for part in text.split(",")]
            config = FastVARConfig.for_last(model.config.vqvae.scales, ratios, mode=mode, min_keep=args.min_keep,
                                            later_layer_start=args.layer_start)
            seconds, results = best(dataclasses.replace(plain_settings, fastvar=config))
            row = {"mode": mode, "ratios": ratios, "seconds": seconds, "speedup": plain_seconds / seconds}
            if args.model:
                row["psnr_y"] = sum(psnr_y(a, b) for a, b in zip(results, plain)) / len(plain)
                row["ssim_y"] = sum(ssim_y(a, b) for a, b in zip(results, plain)) / len(plain)
            rows.append(row)
            print(", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                            for key, value in row.items()), flush=True)
    return {"model": args.model or args.preset, "dtype": args.dtype, "device": str(device), "pictures": len(pictures),
            "layer_start": args.layer_start, "min_keep": args.min_keep, "plain_seconds": plain_seconds,
            "machine": describe(device), "settings": rows}


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
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.plot:
        draw(args.plot[0], args.plot[1:])
        return 0
    if bool(args.preset) == bool(args.model):
        parser.error("give --preset (speed) or --model (speed and quality)")
    result = measure(args)
    print(f"plain {result['plain_seconds']:.2f} s")
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
