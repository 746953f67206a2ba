"""The course of `evaluate.py`: folders, protocol, progress, tables, report, manifest."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from utils.device import choose_device
from utils.errors import visible
from utils.files import require_folder

from .compare import Evaluation, Evaluator, Folders, find_folders
from .protocols import PROTOCOLS
from .report.page import render_report
from .tables import console_table, versions, write_manifest, write_tables, write_text

REPORT_FILE = "report.html"


def run_evaluation(args: argparse.Namespace, command: Sequence[str]) -> Evaluation:
    """Do what the flags say and print the means. Raises ValueError or OSError for a mistake in the flags."""
    protocol = PROTOCOLS[args.protocol]
    folders = find_folders(args.results, args.names, args.hr, args.lr)
    require_folder("--output", args.output)
    print(protocol.describe())
    evaluation = _measured(Evaluator(protocol, choose_device(args.device)), folders)
    outputs = write_tables(evaluation, args.output)
    if not args.no_report:
        page = render_report(evaluation, command, versions(), args.report_pictures)
        outputs.append(write_text(args.output / REPORT_FILE, page))
    outputs.append(write_manifest(evaluation, command, args.output, outputs))
    for failure in evaluation.failures:
        print(f"left out: {visible(failure)}")
    print(console_table(evaluation))
    counts = ", ".join(f"{method} {len(rows)}" for method, rows in evaluation.values.items())
    stopped = "; stopped before the end" if evaluation.stop else ""
    print(f"pictures measured: {counts or 'none'}; {len(evaluation.failures)} left out{stopped}")
    print(f"written: {', '.join(str(path) for path in outputs)}")
    return evaluation


def _measured(evaluator: Evaluator, folders: Folders) -> Evaluation:
    with tqdm(unit="picture", dynamic_ncols=True) as bar:
        def advance(name: str, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update()
        return evaluator.run(folders, advance)
