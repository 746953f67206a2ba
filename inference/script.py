"""The common course of the restoring scripts: jobs, model, run, report."""
from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from utils.flags import set_up_logging

from .load import load_model
from .settings import restore_settings

if TYPE_CHECKING:
    from models.varsr import VARSR
    from utils.ranks import Ranks

    from .jobs import Job
    from .report import Report
    from .runner import RunOptions
    from .settings import RestoreSettings

if TYPE_CHECKING:
    Adjust = Callable[[VARSR, RestoreSettings, RunOptions], tuple[RestoreSettings, RunOptions]]

VERSION = "0.1.0"


def run_restoration(args: argparse.Namespace, script: Path, adjust: Adjust | None = None,
                    tiled: bool = False) -> Report | None:
    """Restore what the flags name and print the summary; None after a mistake in the flags, told in one line.

    adjust: what a script changes in the settings and options. tiled: the model's guidance for tiled pictures is the
    default, not the one for single windows.
    """
    set_up_logging()
    ranks = None
    try:
        _check_sizes(args)
        jobs, failures = _jobs(args, script.resolve().parent / "testset")
        model, description = load_model(args)
        settings = restore_settings(args, model, tiled)
        options = _run_options(args, settings, description)
        if adjust is not None:
            settings, options = adjust(model, settings, options)
        from utils.ranks import Ranks
        ranks = Ranks.from_environment()
    except (ValueError, OSError) as error:
        print(f"{script.name}: {error}", file=sys.stderr)
        return None
    try:
        return _run(model, settings, options, ranks, jobs, failures, description)
    finally:
        ranks.close()


def _run(model: VARSR, settings: RestoreSettings, options: RunOptions, ranks: Ranks, jobs: list[Job],
         failures: dict[Path, str], description: str) -> Report:
    from .runner import Runner
    size = model.config.image_size
    if ranks.rank == 0:
        print(f"{description}; scale {settings.generation.scale:g}, cfg {settings.generation.cfg:g}, "
              f"results larger than {size}x{size} are made of windows")
    report = Runner(model, settings, options, ranks).run(jobs, failures)
    if ranks.rank == 0:
        print(report.summary())
    return report


def _check_sizes(args: argparse.Namespace) -> None:
    """Only one way to say how large the results shall be."""
    ways = [("--scale", args.scale), ("--longest", args.longest), ("--width or --height", args.width or args.height)]
    given = [name for name, value in ways if value is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} both say how large the results are: give one of them")


def making_of(settings: RestoreSettings, description: str) -> tuple[tuple[str, str], ...]:
    """What a result's file says of its making, for `ResultOptions.text`."""
    generation = " ".join(f"{name}={value}" for name, value in dataclasses.asdict(settings.generation).items())
    return (("Software", f"VARSR {VERSION}"),
            ("VARSR", f"{description}; seed={settings.seed} {generation} color_fix={settings.color_fix} "
                      f"overlap={settings.overlap:g}"))


def _run_options(args: argparse.Namespace, settings: RestoreSettings, description: str) -> RunOptions:
    from pictures.bicubic import SizeRequest
    from pictures.picture import MAX_PIXELS
    from pictures.result_file import ResultOptions
    from utils.ranks import is_restart

    from .runner import RunOptions
    return RunOptions(
        size=SizeRequest(settings.generation.scale, args.width, args.height, args.longest),
        result=ResultOptions(strip_metadata=args.strip_metadata, quality=args.quality,
                             text=making_of(settings, description)),
        skip_existing=args.skip_existing or is_restart(), max_pixels=args.max_pixels or MAX_PIXELS, sheet=args.sheet,
        sheet_pictures=args.sheet_pictures, log=args.log)


def _jobs(args: argparse.Namespace, testsets: Path) -> tuple[list[Job], dict[Path, str]]:
    """The jobs, and what could not even be listed."""
    from pictures.folders import InputError

    from .jobs import OutputNames, collect, default_jobs, jobs_for
    names = OutputNames(args.suffix, args.ext)
    if args.input is None:
        if args.output is not None:
            raise InputError("--output goes with --input: without it results stay in their testset folders")
        jobs, failures = default_jobs(testsets, names), {}
    else:
        found = collect(args.input, args.recursive)
        jobs, failures = jobs_for(found.pictures, Path(args.output or "results"), names), found.failures
    return (_frames(jobs) if args.frames else jobs), failures


def _frames(jobs: list[Job]) -> list[Job]:
    """A job for every frame; files that cannot be read stay one job, which will say why."""
    from pictures.formats import ImageError
    from pictures.picture import frame_count

    from .jobs import per_frame
    every = []
    for job in jobs:
        try:
            every += per_frame(job, frame_count(job.source))
        except ImageError:
            every.append(job)
    return every
