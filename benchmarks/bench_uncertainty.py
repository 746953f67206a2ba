"""Whether maps of expected errors know where the errors are: `python benchmarks/bench_uncertainty.py --data FOLDER`.

Crops of photographs that neither the model nor its calibration saw are degraded as in training, in ways that the
calibration knows by kind (blur, noise, JPEG, WebP), and in ways that neither saw (AVIF, motion blur), and restored. Of
the map and of two simple guesses, the local contrast of the LR picture (in several neighbourhoods) and the spread of
four seeds: Spearman's correlation with the blurred error, the area between the sparsification curve and an oracle's,
and of the map the share of pixels within its 90 % band. "pooled": over the pixels of all crops; "per crop": the mean of
each crop's own. `--timing`: what a map costs.
"""
from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.subject import ROOT, add_run_flags, model_name, plain_model

if TYPE_CHECKING:
    from torch import Tensor

    from calibration.examples import Example

SEEDS, SCALE, LEVELS = 4, 4, 255.0
NOISE, JPEG_QUALITY, BLUR_SIGMA, BLUR_SIDE = 10.0, 35, 2.6, 19
WEBP_QUALITY, AVIF_QUALITY, MOTION = 20, 40, 13  # pixels of the HR crop, along a diagonal
RADII = (1, 3, 7)  # pixels to each side, of local contrast
TIMED = 512  # side of the picture that is timed


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", default=[str(ROOT / "testset" / "sample" / "HR")],
        help="folders of photographs (default: testset/sample/HR)")
    add("--model", default=str(ROOT / "checkpoints" / "varsr-tiny"))
    add("--crops", type=int, default=20, help="of each degradation (default: %(default)s)")
    add("--timing", type=int, default=0, metavar="RUNS", help="time a picture of 512x512 so often, with and without")
    add_run_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Restore, compare, report."""
    args = build_parser().parse_args(argv)
    from benchmarks.machine import describe
    from inference.settings import calibration_of
    model = plain_model(args)
    calibration = calibration_of(args.model, model.config)
    if calibration is None:
        raise SystemExit(f"{args.model} has no calibration: python -m calibration makes it")
    report = {"model": model_name(args.model), "dtype": args.dtype, "crops": args.crops,
              "machine": describe(model.device)}
    if args.timing:
        report["timing"] = timing(model, calibration, args.timing)
        print(report["timing"], flush=True)
    report["results"] = measured(model, calibration, args)
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(model, calibration, args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """By degradation and "all": by estimate its figures."""
    from calibration.examples import CROP_WINDOWS, examples, random_crops
    found: dict[str, list[dict[str, Tensor]]] = {}
    size = round(CROP_WINDOWS * model.config.image_size)
    for kind, degrade in degradations(args.seed).items():
        crops = random_crops(args.data, size, args.crops, args.seed)
        found[kind] = [estimates(each, calibration)
                       for each in examples(model, crops, lambda number, hr, by=degrade: by(hr, number), SEEDS)]
    found["all"] = [each for kind in list(found) for each in found[kind]]
    results = {}
    for kind, crops in found.items():
        results[kind] = figures(crops)
        print(f"\n{kind}, {len(crops)} crops\n\n| | Spearman pooled | per crop | sparsification pooled | per crop | "
              "coverage |\n|---|---|---|---|---|---|")
        for name, row in results[kind].items():
            held = f"{row['coverage']:.3f}" if "coverage" in row else ""
            print(f"| {name} | {row['spearman_pooled']:.3f} | {row['spearman']:.3f} | "
                  f"{row['sparsification_pooled']:.4f} | {row['sparsification']:.4f} | {held} |", flush=True)
    return results


def estimates(example: Example, calibration) -> dict[str, Tensor]:
    """Every estimate (H, W) of an example, with "error" and "blurred", and the bands."""
    from calibration.fit import expected
    made = {"error": example.error, "blurred": example.blurred, f"spread of {SEEDS} seeds": example.spread}
    for name, head in (("map", calibration.heads["one"]), (f"map with {SEEDS} samples", calibration.heads["several"])):
        made[name] = expected(head, example)
        made[f"{name}: band"] = head.within(made[name])
    made |= {f"LR contrast within {radius}": contrast(example.enlarged, radius) for radius in RADII}
    return made


def contrast(picture: Tensor, radius: int) -> Tensor:
    """Deviation of luma (H, W) in neighbourhoods."""
    from inference.lr_statistics import windowed_mean
    from pictures.rgb import luma_levels
    luma = luma_levels(picture)[None]
    return (windowed_mean(luma.square(), radius) - windowed_mean(luma, radius).square()).clamp(min=0).sqrt()[0]


def figures(crops: list[dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    """By estimate."""
    import torch

    from evaluation.metrics.uncertainty import coverage, sparsification_error, spearman
    rows = {}

    def every_second(plane: Tensor) -> Tensor:  # neighbours are alike
        return plane[::2, ::2].flatten()
    for name in crops[0]:
        if name in ("error", "blurred") or name.endswith(": band"):
            continue
        pairs = [(every_second(crop[name]), every_second(crop["blurred"])) for crop in crops]
        pooled = [torch.cat(each) for each in zip(*pairs, strict=True)]
        row = {"spearman_pooled": spearman(*pooled), "sparsification_pooled": sparsification_error(*pooled),
               "spearman": sum(spearman(*pair) for pair in pairs) / len(pairs),
               "sparsification": sum(sparsification_error(*pair) for pair in pairs) / len(pairs)}
        if f"{name}: band" in crops[0]:
            row["coverage"] = sum(coverage(crop[f"{name}: band"], crop["error"]) for crop in crops) / len(crops)
        rows[name] = row
    return rows


def degradations(seed: int) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """HR (3, H, W) and a number to LR, by name."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from torchvision.transforms.functional import gaussian_blur

    from dataloader.degradation import Degradation, DegradationConfig
    from pictures.rgb import to_pillow
    trained = Degradation(DegradationConfig.load())

    def generator(number: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed * 7919 + number)

    def back(picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / LEVELS

    def reduced(hr: Tensor, filter_: Image.Resampling) -> Image.Image:
        return to_pillow(hr).resize((hr.shape[2] // SCALE, hr.shape[1] // SCALE), filter_)

    def noise(hr: Tensor, number: int) -> Tensor:
        lr = back(reduced(hr, Image.Resampling.BOX))
        noisy = lr + torch.randn(lr.shape, generator=generator(number)) * NOISE / LEVELS
        return noisy.clamp(0, 1).mul(LEVELS).round().div(LEVELS)

    def compressed(hr: Tensor, kind: str, quality: int) -> Tensor:
        buffer = io.BytesIO()
        reduced(hr, Image.Resampling.LANCZOS).save(buffer, kind, quality=quality)
        return back(Image.open(buffer))

    def motion(hr: Tensor, number: int) -> Tensor:
        reach = MOTION // 2
        padded = F.pad(hr[None], (reach,) * 4, mode="reflect")[0]
        height, width = hr.shape[1:]
        shifted = [padded[:, i:i + height, i:i + width] for i in range(MOTION)]
        return back(reduced(torch.stack(shifted).mean(0), Image.Resampling.BICUBIC))
    return {"as in training": lambda hr, number: trained(hr[None], generator(number))[0],
            "bicubic": lambda hr, number: back(reduced(hr, Image.Resampling.BICUBIC)),
            f"noise of {NOISE:g} levels": noise,
            f"JPEG {JPEG_QUALITY}": lambda hr, number: compressed(hr, "JPEG", JPEG_QUALITY),
            f"blur of {BLUR_SIGMA:g} pixels": lambda hr, number: back(reduced(
                gaussian_blur(hr, [BLUR_SIDE] * 2, [BLUR_SIGMA] * 2), Image.Resampling.BICUBIC)),
            f"WebP {WEBP_QUALITY}": lambda hr, number: compressed(hr, "WEBP", WEBP_QUALITY),
            f"AVIF {AVIF_QUALITY}": lambda hr, number: compressed(hr, "AVIF", AVIF_QUALITY),
            f"motion of {MOTION} pixels": motion}


def timing(model, calibration, runs: int) -> dict[str, float]:
    """Seconds of a 512x512 picture: plain, with a map, and with one of four samples; the fastest of some runs, which
    take turns."""
    import torch

    from inference.restore import restore, restore_with_errors
    from inference.settings import RestoreSettings, UncertaintySettings
    lr = torch.rand(3, TIMED // SCALE, TIMED // SCALE, generator=torch.Generator().manual_seed(0))
    plain = RestoreSettings(model.config.generation)
    ways: dict[str, Callable[[], object]] = {"plain": lambda: restore(model, lr, plain)}
    for name, samples in (("map", 0), (f"map_with_{SEEDS}_samples", SEEDS)):
        settings = RestoreSettings(model.config.generation, uncertainty=UncertaintySettings(samples, calibration))
        ways[name] = lambda settings=settings: restore_with_errors(model, lr, settings)
    seconds = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in seconds.items()}  # the first one loads libraries


if __name__ == "__main__":
    sys.exit(main())
