"""The common course of the restoring scripts: flags, jobs, model, run, report."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import add_generation_flags, add_model_flags, load_model, restore_settings, set_up_logging

if TYPE_CHECKING:
    from models.varsr import VARSR

    from .inputs import Job
    from .restore import RestoreSettings
    from .runner import Report, Restorer

    RestorerFactory = Callable[[VARSR, RestoreSettings], Restorer]


def add_restoration_flags(parser: argparse.ArgumentParser) -> None:
    """Input, output, model and sampling."""
    parser.add_argument("-i", "--input", help="picture, folder or glob pattern")
    parser.add_argument("-o", "--output", help="result folder (default: results; without --input each "
                                               "testset folder's own VARPrediction)")
    add_model_flags(parser)
    add_generation_flags(parser)
    parser.add_argument("--skip_existing", action="store_true", help="leave pictures out whose result is there")
    parser.add_argument("--sheet", type=Path, help="write a comparison sheet to this PNG")


def run_restoration(args: argparse.Namespace, script: Path, restorer_for: RestorerFactory) -> Report | None:
    """Restore what the flags name and print the summary; None after a mistake in the flags, told in one line."""
    set_up_logging()
    try:
        jobs = _jobs(args, script.resolve().parent / "testset")
        model, description = load_model(args)
        settings = restore_settings(args, model)
        restorer = restorer_for(model, settings)
    except (ValueError, OSError) as error:
        print(f"{script.name}: {error}", file=sys.stderr)
        return None
    from .runner import Runner
    size = model.config.image_size
    print(f"{description}; scale {settings.generation.scale:g}, cfg {settings.generation.cfg:g}, "
          f"outputs larger than {size}x{size} are made of windows")
    runner = Runner(restorer, settings.generation.scale, model.device, args.skip_existing, args.sheet)
    report = runner.run(jobs)
    print(report.summary())
    return report


def _jobs(args: argparse.Namespace, testsets: Path) -> list[Job]:
    from .inputs import InputError, collect, default_jobs, jobs_for
    if args.input is None:
        if args.output is not None:
            raise InputError("--output goes with --input: without it results stay in their testset folders")
        return default_jobs(testsets)
    return jobs_for(collect(args.input), Path(args.output or "results"))
