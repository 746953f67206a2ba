"""Restore low-resolution pictures: every testset/{folder}/LR, or what --input names.

Without arguments, the pictures of every testset/{folder}/LR go to testset/{folder}/VARPrediction, with the published
weights if checkpoints/VARSR.pth is there, else with the embedded model. HR pictures beside them (testset/{folder}/HR)
give PSNR and SSIM.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.cli import (
    OneLineParser,
    add_generation_flags,
    add_model_flags,
    load_model,
    restore_settings,
    set_up_logging,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", help="picture, folder or glob pattern")
    parser.add_argument("-o", "--output", help="result folder (default: results; without --input each "
                                               "testset folder's own VARPrediction)")
    add_model_flags(parser)
    add_generation_flags(parser)
    parser.add_argument("--skip_existing", action="store_true", help="leave pictures out whose result is there")
    parser.add_argument("--sheet", type=Path, help="write a comparison sheet (bicubic | VARSR | HR) to this PNG")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, restore, report."""
    args = build_parser().parse_args(argv)
    set_up_logging()
    try:
        jobs = _jobs(args)
        model, description = load_model(args)
    except (ValueError, OSError) as error:
        print(f"test_varsr.py: {error}", file=sys.stderr)
        return 1
    from utils.restore import restore
    from utils.runner import Runner
    settings = restore_settings(args, model)
    size = model.config.image_size
    print(f"{description}; scale {settings.generation.scale:g}, cfg {settings.generation.cfg:g}, "
          f"outputs larger than {size}x{size} are made of windows")
    runner = Runner(lambda lr, progress: restore(model, lr, settings, progress), settings.generation.scale,
                    model.device, args.skip_existing, args.sheet)
    report = runner.run(jobs)
    print(report.summary())
    return report.exit_code


def _jobs(args: argparse.Namespace) -> list:
    from utils.inputs import InputError, collect, default_jobs, jobs_for
    if args.input is None:
        if args.output is not None:
            raise InputError("--output goes with --input: without it results stay in their testset folders")
        return default_jobs(Path(__file__).resolve().parent / "testset")
    return jobs_for(collect(args.input), Path(args.output or "results"))


if __name__ == "__main__":
    sys.exit(main())
