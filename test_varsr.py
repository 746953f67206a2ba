"""Restore low-resolution pictures: every testset/{folder}/LR, or what --input names.

Without arguments, the pictures of every testset/{folder}/LR go to testset/{folder}/VARPrediction, with the published
weights if checkpoints/VARSR.pth is there, else with the embedded model. HR pictures beside them (testset/{folder}/HR)
give PSNR and SSIM.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inference.script import add_restoration_flags, run_restoration
from utils.errors import guarded
from utils.flags import OneLineParser


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_restoration_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, restore, report."""
    return guarded(Path(__file__).name,
                   lambda: run_restoration(build_parser().parse_args(argv), Path(__file__)).exit_code)


if __name__ == "__main__":
    sys.exit(main())
