"""Tell what a precision costs: `python benchmarks/bench_precision.py --model MODEL --dtype bf16 int8 fp8`.

Windows of the sample pictures are restored in fp32 and in each precision. Prints the share of codes that are the same
(a code that differs changes what the later scales see) and the PSNR-Y to the fp32 picture, and writes them as JSON.
All on a CPU; fp8, which is for GPUs, takes its time there.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.subject import SAMPLES
from utils.flags import DTYPES, EIGHT_BIT

if TYPE_CHECKING:
    from torch import Tensor

    from models.varsr import VARSR


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/varsr-tiny", help="a model folder, published file or hub id")
    parser.add_argument("--dtype", nargs="+", choices=(*DTYPES, *EIGHT_BIT), default=("bf16", *EIGHT_BIT))
    parser.add_argument("--output", help="JSON file for the results")
    return parser


def load(source: str, name: str) -> VARSR:
    """The model as the scripts have it on a CPU."""
    import torch

    from inference.settings import prepare
    from models.varsr import VARSR
    from utils.device import choose_dtype
    model = VARSR.from_pretrained(source, dtype=choose_dtype(name, torch.device("cpu")))
    return prepare(model, name if name in EIGHT_BIT else None)


def windows(size: int, scale: float) -> Tensor:
    """The middle of every sample picture, enlarged to the model's window: (B, 3, S, S) in [0, 1]."""
    import torch

    from pictures.rgb import TensorSource, read_image, result_size, upsample_region
    parts = []
    for path in sorted(SAMPLES.iterdir()):
        source = TensorSource(read_image(path))
        height, width = result_size(source, scale)
        parts.append(upsample_region(source, (height, width), (height - size) // 2, (width - size) // 2, size, size))
    return torch.stack(parts)


def restored(model: VARSR, lr: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S), and all their codes (B, tokens)."""
    import torch
    codes: list[Tensor] = []
    pictures = model.generate(lr, on_scale=lambda step: codes.append(step.codes))
    return pictures, torch.cat(codes, dim=1)


def main(argv: list[str] | None = None) -> int:
    """Compare and report."""
    args = build_parser().parse_args(argv)
    import torch

    from benchmarks.machine import describe
    from evaluation.metrics.full_reference import psnr_y
    exact = load(args.model, "fp32")
    lr = windows(exact.config.image_size, exact.config.generation.scale)
    pictures, codes = restored(exact, lr)
    rows = []
    for name in args.dtype:
        other_pictures, other_codes = restored(load(args.model, name), lr)
        rows.append({"dtype": name, "same_codes": float((codes == other_codes).float().mean()),
                     "psnr_y": sum(map(psnr_y, other_pictures, pictures)) / len(pictures)})
        print(f"{name}: {rows[-1]['same_codes']:.1%} of the codes are fp32's, PSNR-Y {rows[-1]['psnr_y']:.1f} dB")
    if args.output:
        result = {"model": Path(args.model).name, "windows": len(lr), "precisions": rows,
                  "machine": describe(torch.device("cpu"))}
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
