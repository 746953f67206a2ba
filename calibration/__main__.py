"""Fit what a model's results are off by: `python -m calibration --data FOLDER --model checkpoints/varsr-tiny`.

Photographs that the model was not trained on are cut, degraded in several ways, restored and compared. A network learns
the errors to expect; the 90 % band is measured on crops that it has not learnt from. The result lies beside the model's
weights, where `--uncertainty` finds it.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.errors import UserError, guarded
from utils.files import require_folder
from utils.flags import OneLineParser, bounded


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m calibration", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="FOLDER",
        help="photographs that the model was not trained on: folders, lists or shards")
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
    from models.error_model import MARGIN, Calibration, Fitted, calibration_file
    from models.weights.load import identity, located

    from .degradations import CropDegradation
    from .examples import CROP_WINDOWS, examples, random_crops
    from .fit import FitConfig, fitted_head
    for folder in args.data:
        if not folder.exists():
            raise UserError(f"--data {folder}: no such folder or file")
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder: name a file")
    if args.output is not None:
        require_folder("--output", args.output.parent)
    model, description = load_model(args)
    source = model_source(args)
    print(description)
    crops = random_crops(args.data, round(CROP_WINDOWS * model.config.image_size), args.crops, args.seed)
    degrade = CropDegradation(model.config.generation.scale, args.seed)
    found = list(tqdm(examples(model, crops, degrade, args.samples), total=args.crops, unit="crop", dynamic_ncols=True))
    names, config = input_names(model.config), FitConfig()
    heads = {name: fitted_head(found, len(inputs), config, args.seed) for name, inputs in names.items()}
    data = ", ".join(folder.stem for folder in args.data)
    fitted = Fitted(identity(source), names["several"], len(found), data, config.coverage)
    path = args.output or calibration_file(located(source))
    Calibration(fitted, heads).save(path)
    for name, head in heads.items():
        print(f"{name}: {config.coverage:.0%} of pixels within {float(head.band):.3f} times (expected error + "
              f"{MARGIN:g} level)")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
