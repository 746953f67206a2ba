"""What `--lr_consistency` keeps and what it costs, over the sample set.

    OMP_NUM_THREADS=2 python benchmarks/bench_consistency.py --dtype fp32 --output results.json
    python benchmarks/bench_consistency.py --plot curve.png results.json

Two sets of LR pictures: those of `testset/sample`, which are blurred, noisy and JPEG-compressed, and the originals
reduced to a quarter by the very kernel of the promise. For each epsilon the mean and the largest error |D(result) - LR|
in levels, PSNR-Y, SSIM-Y and ST-LPIPS to the originals (the latter where its weights are), and seconds a picture.
Results are rounded to 8 bits before they are measured, as files are.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_quality import SCALE, Set, sample_set
from benchmarks.subject import plain_model, row_text

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.metrics.learned import LearnedMetrics
    from inference.settings import LRConsistency
    from models.varsr import VARSR

EPSILONS = (8.0, 4.0, 2.0, 1.0, 0.5)
NOISE = 5.0  # levels, of the row with --lr_noise


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="checkpoints/varsr-tiny", help="model folder, published file or hub id")
    add("--device", default="cpu")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    add("--count", type=int, nargs=2, default=(10, 5), help="pictures of each set (default: %(default)s)")
    add("--output", help="JSON file for the results")
    add("--plot", nargs=2, metavar="FILE", help="draw instead of measuring: the PNG, then the results to draw")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Restore, measure, report; or draw."""
    args = build_parser().parse_args(argv)
    if args.plot:
        draw(*args.plot)
        return 0
    import torch

    from benchmarks.machine import describe
    from evaluation.metrics.learned import LearnedMetrics
    from evaluation.protocols import ST_LPIPS
    model = plain_model(args)
    learned = LearnedMetrics(torch.device("cpu"), (ST_LPIPS,))
    report = {"model": args.model, "dtype": args.dtype, "machine": describe(model.device), "pictures": {},
              "results": {}}
    sample = sample_set()
    for pictures, count in zip((sample, reduced_set(sample)), args.count, strict=True):
        print(f"\n{pictures.name}")
        report["pictures"][pictures.name] = len(pictures.lr[:count])
        report["results"][pictures.name] = curve(model, pictures, learned, count)
        if args.output:
            Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def reduced_set(sample: Set) -> Set:
    """The originals, and what the kernel of the promise makes of them, in 8 bits."""
    from pictures.rgb import TensorSource, reduce_region
    lr = []
    for original in sample.references:
        height, width = (side // SCALE for side in original.shape[1:])
        reduced = reduce_region(TensorSource(original), (height, width), 0, 0, height, width)
        lr.append((reduced * 255).round().clamp(0, 255) / 255)
    return Set("reduced originals", lr, sample.references)


def curve(model: VARSR, pictures: Set, learned: LearnedMetrics, count: int) -> dict[str, dict[str, float]]:
    """Means over the pictures by setting; of the largest error the largest."""
    rows: dict[str, list[dict[str, float]]] = {}
    for lr, original in list(zip(pictures.lr, pictures.references, strict=True))[:count]:
        for name, row in measured(model, lr, original, learned).items():
            rows.setdefault(name, []).append(row)
    means = {}
    for name, every in rows.items():
        means[name] = {key: sum(row[key] for row in every) / len(every) for key in every[0]}
        means[name]["max_error"] = max(row["max_error"] for row in every)
        print(f"{name}: {row_text(means[name])}", flush=True)
    return means


def measured(model: VARSR, lr: Tensor, original: Tensor, learned: LearnedMetrics) -> dict[str, dict[str, float]]:
    """All settings of one picture: pixels projected alone (the epsilon), and codes rechosen too. Codes are the same for
    every epsilon, so that it is generated twice."""
    from evaluation.metrics.full_reference import psnr_y, ssim_y
    from inference.consistency import residual
    from inference.settings import LRConsistency
    from pictures.rgb import TensorSource
    plain, rechosen = (restored(model, lr, each) for each in (None, LRConsistency(1.0, rechoose=True)))
    results = {"none": plain, "codes alone": rechosen}
    for epsilon in EPSILONS:
        for kind, before in (("", plain), ("codes too, ", rechosen)):
            results[f"{kind}{epsilon:g}"] = projected(model, lr, before, LRConsistency(epsilon))
    results[f"1, noise {NOISE:g}"] = projected(model, lr, plain, LRConsistency(1.0, NOISE))
    rows = {}
    for name, (pixels, seconds) in results.items():
        written = (pixels * 255).round() / 255
        found = residual(TensorSource(written), TensorSource(lr), NOISE if "noise" in name else 0.0)
        rows[name] = {"mean_error": found.mean, "max_error": found.largest, "psnr_y": psnr_y(written, original),
                      "ssim_y": ssim_y(written, original), **learned.distance(written, original), "seconds": seconds}
    return rows


Timed = tuple["Tensor", float]  # pixels, and the seconds that they took


def restored(model: VARSR, lr: Tensor, consistency: LRConsistency | None) -> Timed:
    """A picture before its pixels are projected; consistency: rechooses codes."""
    import torch

    from inference.products import rendered
    from inference.restore import generated
    from inference.settings import RestoreSettings
    start = time.perf_counter()
    settings = RestoreSettings(model.config.generation)
    tiled, batch = generated(model, lr, dataclasses.replace(settings, lr_consistency=consistency))
    bands = rendered(model, tiled, settings, batch, tiled.finished)
    return torch.cat([rows for _, rows in bands], dim=1), time.perf_counter() - start


def projected(model: VARSR, lr: Tensor, before: Timed, consistency: LRConsistency) -> Timed:
    """The pixels projected."""
    from inference.consistency import Projection
    start = time.perf_counter()
    pixels = Projection(laid_out(model, lr), consistency, model.device)(before[0], 0)
    return pixels, before[1] + time.perf_counter() - start


def laid_out(model: VARSR, lr: Tensor):
    """A picture at four times its size."""
    from inference.windows import TiledPicture
    from pictures.rgb import TensorSource, result_size
    source = TensorSource(lr)
    return TiledPicture(source, result_size(source, SCALE), model.config)


def draw(output: str, results: str) -> None:
    """Error against the LR picture, and PSNR-Y and ST-LPIPS to the original, along epsilon."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    names = ["none", *(f"{epsilon:g}" for epsilon in EPSILONS)]
    titles = {"mean_error": "mean error to LR, levels", "psnr_y": "PSNR-Y to the original, dB",
              "st_lpips": "ST-LPIPS to the original"}
    figure, axes = plt.subplots(1, len(titles), figsize=(9, 2.6), dpi=90)
    for name, rows in json.loads(Path(results).read_text(encoding="utf-8"))["results"].items():
        for axis, (key, title) in zip(axes, titles.items(), strict=True):
            axis.plot(names, [rows[each].get(key, float("nan")) for each in names], marker="o", label=name)
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("--lr_consistency", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(output)


if __name__ == "__main__":
    sys.exit(main())
