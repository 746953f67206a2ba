"""Quality of models beside bicubic enlargement: `python benchmarks/bench_quality.py --model checkpoints/varsr-tiny`.

Two sets, restored as the scripts restore: `testset/sample`, and with `--held_out` crops of other photographs, degraded
by the same rules as in training. Those that the embedded model never saw are fetched by

    python -m dataloader.assemble.photos --held_out --output trainset_held_out

`--results` adds folders of what other programs made of `testset/sample/LR`.

PSNR, SSIM and high-frequency energy (mean distance of Y from its blur, sigma 1.5, as a share of the reference's) are on
luma; GMSD, ST-LPIPS, PIQE and NIQE are better where they are lower. ST-LPIPS needs its weights, NIQE its parameters
(docs/evaluation.md) and pictures larger than the crops.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.subject import ROOT, add_run_flags, plain_model

if TYPE_CHECKING:
    from torch import Tensor

BICUBIC = "bicubic"
SCALE, CROP = 4, 128
COLUMNS = {"psnr_y": ("PSNR-Y", "{:.2f}"), "ssim_y": ("SSIM-Y", "{:.4f}"), "gmsd": ("GMSD", "{:.4f}"),
           "high_frequency": ("high frequencies", "{:.2f}"), "st_lpips": ("ST-LPIPS", "{:.3f}"),
           "niqe": ("NIQE", "{:.2f}"), "piqe": ("PIQE", "{:.1f}")}


@dataclass(frozen=True)
class Set:
    """Pictures to restore: LR (3, h, w) and references (3, 4h, 4w) in [0, 1]; `restored`: what others made of them."""

    name: str
    lr: list[Tensor]
    references: list[Tensor]
    restored: dict[str, list[Tensor]] = field(default_factory=dict)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=["checkpoints/varsr-tiny"], help="model folders, published files or hub ids")
    add("--results", type=Path, nargs="+", default=[], help="folders of pictures made from testset/sample/LR")
    add("--held_out", help="folder of photographs for the second set")
    add("--count", type=int, default=100, help="crops of them (default: %(default)s)")
    add_run_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Restore, measure, report."""
    args = build_parser().parse_args(argv)

    import torch

    from benchmarks.machine import describe
    from utils.device import keep_freed_memory
    keep_freed_memory()
    sets = [sample_set(args.results), *([crops(Path(args.held_out), args.count)] if args.held_out else [])]
    methods = {BICUBIC: bicubic} | {name: restorer(name, args) for name in args.model}
    results: dict[str, dict[str, dict[str, float]]] = {}
    for pictures in sets:
        print(f"\n{pictures.name}, {len(pictures.lr)} pictures\n\n| | " + " | ".join(
            title for title, _ in COLUMNS.values()) + " |\n|---|" + "---|" * len(COLUMNS))
        results[pictures.name] = {}
        restored = {name: map(method, pictures.lr) for name, method in methods.items()} | pictures.restored
        for name, made in restored.items():
            values = quality(made, pictures.references)
            results[pictures.name][name] = values
            cells = [form.format(values[key]) if key in values else "" for key, (_, form) in COLUMNS.items()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if args.output:
        report = {"dtype": args.dtype, "seed": args.seed, "machine": describe(torch.device(args.device)),
                  "results": results}
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def sample_set(results: Iterable[Path] = ()) -> Set:
    """The pairs of the repository, and folders of results for them."""
    from pictures.rgb import read_image
    folder = ROOT / "testset" / "sample"
    names = sorted(path.name for path in (folder / "LR").iterdir())
    return Set("sample set", [read_image(folder / "LR" / name) for name in names],
               [read_image(folder / "HR" / name) for name in names],
               {made.name: [read_image(made / name) for name in names] for made in results})


def crops(folder: Path, count: int) -> Set:
    """Evenly chosen crops of a folder's photographs and what the degradation makes of them."""
    from dataloader.degradation import Degradation, DegradationConfig
    from dataloader.held_out import held_out
    pairs = held_out(str(folder), CROP, count, Degradation(DegradationConfig.load()))
    return Set("held-out crops", list(pairs.lr), list(pairs.target))


def bicubic(lr: Tensor) -> Tensor:
    """The picture enlarged."""
    from pictures.rgb import upsample
    return upsample(lr, SCALE)


def restorer(source: str, args: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """A model's restoration with its own settings."""
    from inference.restore import restore
    from inference.settings import RestoreSettings
    model = plain_model(args, source)
    settings = RestoreSettings(model.config.generation, seed=args.seed)
    return lambda lr: restore(model, lr, settings)


def quality(pictures: Iterable[Tensor], references: list[Tensor]) -> dict[str, float]:
    """Means over the pictures, as they are saved: rounded to 8 bits."""
    import torch

    from evaluation.metrics.full_reference import eight_bit, gmsd, gray, high_frequency, luma, psnr_y, ssim_y
    from evaluation.metrics.learned import LearnedMetrics
    from evaluation.metrics.piqe import piqe
    from evaluation.protocols import NIQE, ST_LPIPS
    learned = LearnedMetrics(torch.device("cpu"), (NIQE, ST_LPIPS))
    rows: list[dict[str, float]] = []
    for picture, reference in zip(pictures, references, strict=True):
        picture = eight_bit(picture.float().cpu()) / 255
        row = {"psnr_y": psnr_y(picture, reference), "ssim_y": ssim_y(picture, reference),
               "gmsd": gmsd(gray(picture), gray(reference)), "piqe": piqe(picture),
               "detail": high_frequency(luma(picture)), "reference_detail": high_frequency(luma(reference)),
               **learned.measure(picture.float(), reference)}
        rows.append(row)
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    means["high_frequency"] = means.pop("detail") / means.pop("reference_detail")
    return means


if __name__ == "__main__":
    sys.exit(main())
