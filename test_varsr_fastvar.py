"""Restore pictures with FastVAR token pruning; everything else is as in test_varsr.py.

`--fastvar` drops tokens at the last scales: each ratio is the share of tokens that is NOT computed. `--compare` runs
every picture without pruning too and reports seconds and PSNR between the two.
"""
from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from utils.cli import OneLineParser, bounded
from utils.restoration import add_restoration_flags, run_restoration


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_restoration_flags(parser)
    ratio = bounded(float, 0, 1, open_high=True)
    add = parser.add_argument
    add("--fastvar", action="store_true", help="prune tokens")
    add("--fastvar_second_last_ratio", type=ratio, default=0.4, help="drop ratio of the last scale but one (0.4)")
    add("--fastvar_last_ratio", type=ratio, default=0.3, help="drop ratio of the last scale (0.3)")
    add("--fastvar_ratios", type=ratio, nargs="+", metavar="RATIO",
        help="drop ratios of the last scales, the last one last, instead of the two above")
    add("--fastvar_later_layer_start", type=bounded(int, 0), default=3, help="first layer that is pruned (3)")
    add("--fastvar_min_keep", type=bounded(int, 1), default=64, help="tokens that stay in any case (64)")
    add("--fastvar_mode", choices=("separate", "shared"), default="separate",
        help="separate: attention and feed-forward choose tokens for themselves; shared: one choice a layer, faster")
    add("--fastvar_quiet", action="store_true", help="do not say what is pruned")
    add("--compare", action="store_true", help="run without pruning too: seconds saved, PSNR, both in the sheet")
    add("--export_intermediate", action="store_true", help="write NAME_scales/side{n}.png after every scale")
    add("--intermediate_max", type=bounded(int, 1), default=10,
        help="largest side to export; the last one always is (10)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, restore, report."""
    args = build_parser().parse_args(argv)
    restorers = []

    def restorer_for(model, settings):
        from models.fastvar import FastVARConfig
        from utils.fastvar_run import FastVARRestorer
        ratios = args.fastvar_ratios or (args.fastvar_second_last_ratio, args.fastvar_last_ratio)
        config = FastVARConfig.for_last(
            model.config.vqvae.scales, ratios, later_layer_start=args.fastvar_later_layer_start,
            min_keep=args.fastvar_min_keep, mode=args.fastvar_mode)
        settings = dataclasses.replace(settings, fastvar=config if args.fastvar else None,
                                       export_max=args.intermediate_max)
        restorers.append(FastVARRestorer(model, settings, args.compare, args.export_intermediate))
        return restorers[0]
    report = run_restoration(args, Path(__file__), restorer_for)
    if report is None:
        return 1
    if not args.fastvar_quiet:
        print("\n".join(restorers[0].plan_lines()))
    if restorers[0].comparisons:
        print(restorers[0].comparison_line())
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
