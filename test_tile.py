"""Restore pictures of any size, window by window, into files like the ones they came in.

Without arguments as test_varsr.py. PNG, JPEG, WebP and TIFF files keep their kind, others become PNG; profiles,
transparency, 16 bits and metadata are kept. `torchrun --nproc-per-node=N test_tile.py ...` shares the pictures, and
the windows of large ones, between N processes. A large picture whose run was stopped is continued.
"""
from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from inference.script import add_fastvar_flags, add_restoration_flags, run_restoration
from utils.errors import guarded
from utils.flags import OneLineParser


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_restoration_flags(parser, ext="auto")
    add_fastvar_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, restore, report."""
    return guarded(Path(__file__).name, lambda: _run(build_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    def adjust(model, settings, options):
        from inference.settings import fastvar_config, plan_lines
        config = fastvar_config(args, model) or settings.fastvar
        if config is not None and not args.fastvar_quiet:
            print("\n".join(plan_lines(model, config)))
        return dataclasses.replace(settings, fastvar=config), options
    return run_restoration(args, Path(__file__), adjust).exit_code


if __name__ == "__main__":
    sys.exit(main())
