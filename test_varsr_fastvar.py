"""Restore pictures with FastVAR token pruning; everything else is as in test_varsr.py.

`--fastvar` drops tokens at the last scales: each ratio is the share of tokens that is NOT computed. `--compare` runs
every picture without pruning too and reports seconds and PSNR between the two.
"""
from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from inference.script import PIPE, add_fastvar_flags, add_restoration_flags, run_restoration
from utils.errors import guarded
from utils.flags import OneLineParser, bounded

INTERMEDIATE_MAX = 10


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_restoration_flags(parser)
    add_fastvar_flags(parser)
    add = parser.add_argument
    add("--compare", action="store_true", help="run without pruning too: seconds saved, PSNR, both in the sheet")
    add("--export_intermediate", action="store_true", help="write NAME_scales/side{n}.png after every scale")
    add("--intermediate_max", type=bounded(int, 1),
        help=f"largest side to export; the last one always is ({INTERMEDIATE_MAX})")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, restore, report."""
    return guarded(Path(__file__).name, lambda: _run(build_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    lines, comparison = [], None
    told = sys.stderr if args.output == PIPE else sys.stdout

    def adjust(model, settings, options):
        nonlocal comparison
        from inference.fastvar import FastVARComparison
        from inference.settings import fastvar_config, plan_lines
        settings = dataclasses.replace(settings, fastvar=fastvar_config(args, model) or settings.fastvar)
        if not args.fastvar_quiet:
            lines.extend(plan_lines(model, settings.fastvar))
        if args.compare:
            comparison = FastVARComparison(model, settings)
        return settings, dataclasses.replace(
            options, export_max=(args.intermediate_max or INTERMEDIATE_MAX) if args.export_intermediate else 0,
            extra=comparison, label="FastVAR" if args.compare else options.label)
    report = run_restoration(args, Path(__file__), adjust)
    if comparison is not None and comparison.comparisons:
        lines.append(comparison.line())
    print("\n".join(lines), file=told)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
