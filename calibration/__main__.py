"""Fit what a model's results are off by: `python -m calibration --data FOLDER --model checkpoints/varsr-tiny`.

Photographs that the model was not trained on are cut, degraded as in training (and one in four only reduced), restored
and compared. The result lies beside the model's weights, where `--uncertainty` finds it.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, guarded
from utils.files import require_folder
from utils.flags import OneLineParser, bounded

if TYPE_CHECKING:
    import torch

LIGHT_SHARE = 0.3  # of the degraded crops, those that are only slightly so
CLEAN = 4  # one crop in so many is only reduced


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m calibration", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="photographs that the model was not trained on: a folder, a list or a "
                                                 "shard")
    add("--model", help="model folder, published file or hub id (default: as for restoring)")
    add("--output", type=Path, help="the file (default: beside the model's weights)")
    add("--crops", type=bounded(int, 40), default=320, help="how many (default: %(default)s)")
    add("--samples", type=bounded(int, 1, 16), default=4,
        help="further results whose spread is learned too, for --uncertainty_samples (default: %(default)s)")
    add("--seed", type=bounded(int, 0), default=0)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="as for restoring")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Restore, fit, write."""
    return guarded("python -m calibration", lambda: _run(build_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from inference.evidence import input_names
    from inference.settings import load_model, model_source
    from models.error_model import Calibration, Fitted, calibration_file
    from models.weights.load import identity, located

    from .examples import CROP_WINDOWS, examples, random_crops
    from .fit import FitConfig, fitted_head
    if not args.data.exists():
        raise UserError(f"--data {args.data}: no such folder or file")
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder: name a file")
    if args.output is not None:
        require_folder("--output", args.output.parent)
    model, description = load_model(args)
    source = model_source(args)
    print(description)
    crops = random_crops([args.data], round(CROP_WINDOWS * model.config.image_size), args.crops, args.seed)
    found = list(tqdm(examples(model, crops, _degradation(args.seed, model.config.generation.scale), args.samples),
                      total=args.crops, unit="crop", dynamic_ncols=True))
    names, config = input_names(model.config), FitConfig()
    heads = {name: fitted_head(found, len(inputs), config, args.seed) for name, inputs in names.items()}
    fitted = Fitted(identity(source), names["several"], args.crops, args.data.stem, config.coverage)
    path = args.output or calibration_file(located(source))
    Calibration(fitted, heads).save(path)
    for name, head in heads.items():
        print(f"{name}: {config.coverage:.0%} of pixels within {float(head.band):.3f} times the expected error")
    print(f"written: {path}")
    return 0


def _degradation(seed: int, scale: float):
    """HR crops to LR ones, by their number."""
    import torch

    from dataloader.degradation import Degradation, DegradationConfig
    from pictures.rgb import LEVELS_8, TensorSource, reduce_region
    degradation = Degradation(DegradationConfig.load(light_probability=LIGHT_SHARE, scale=round(scale)))

    def degrade(number: int, hr: torch.Tensor) -> torch.Tensor:
        size = tuple(round(side / scale) for side in hr.shape[1:])
        if number % CLEAN == 0:
            return reduce_region(TensorSource(hr), size, 0, 0, *size).clamp(0, 1).mul(LEVELS_8).round().div(LEVELS_8)
        return degradation(hr[None], torch.Generator().manual_seed(seed * 1_000_003 + number))[0]
    return degrade


if __name__ == "__main__":
    sys.exit(main())
