"""Measure folders of results by a named protocol, against originals or without.

Pictures belong together by file name. The output folder gets metrics.csv (every picture), summary.csv (means with
confidence intervals), manifest.json (hashes of all files, protocol, versions) and report.html.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluation.protocols import PROTOCOLS
from utils.errors import guarded
from utils.flags import OneLineParser, bounded, set_up_logging


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results", type=Path, nargs="+", required=True, metavar="DIR", help="a folder of results for each method")
    add("--names", nargs="+", metavar="NAME", help="what the methods are called (default: their folders' names)")
    add("--hr", type=Path, metavar="DIR", help="originals; without them only metrics that need none are measured")
    add("--lr", type=Path, metavar="DIR", help="LR pictures: their bicubic enlargement becomes a method of its own")
    add("--protocol", choices=PROTOCOLS, default="varsr-paper", help="(default: %(default)s)")
    add("--output", type=Path, default=Path("report"), metavar="DIR", help="(default: %(default)s)")
    add("--device", default="auto", help="where learned metrics are computed (default: %(default)s)")
    add("--no_report", action="store_true", help="do not write report.html")
    add("--report_pictures", type=bounded(int, 0), default=24, help="pictures shown in it (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, evaluate, report."""
    args = build_parser().parse_args(argv)
    set_up_logging()
    from evaluation.run import run_evaluation
    command = [Path(__file__).name, *(sys.argv[1:] if argv is None else argv)]
    return guarded(Path(__file__).name, lambda: run_evaluation(args, command).exit_code)


if __name__ == "__main__":
    sys.exit(main())
