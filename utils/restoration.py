"""The common course of the restoring scripts: flags, jobs, model, run, report."""
from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import add_compile_flag, add_generation_flags, add_model_flags, load_model, restore_settings
from .flags import bounded, set_up_logging

if TYPE_CHECKING:
    from models.varsr import VARSR

    from .generation import RestoreSettings
    from .inputs import Job
    from .ranks import Ranks
    from .report import Report
    from .runner import RunOptions

    Adjust = Callable[[VARSR, RestoreSettings, RunOptions], tuple[RestoreSettings, RunOptions]]

VERSION = "0.1.0"


def add_restoration_flags(parser: argparse.ArgumentParser, ext: str = "png") -> None:
    """Input, output, model and sampling; `ext` is the kind of result files unless --ext says otherwise."""
    _add_file_flags(parser, ext)
    add_model_flags(parser)
    add_compile_flag(parser)
    add_generation_flags(parser)
    add = parser.add_argument
    pixels = bounded(int, 1)
    add("--width", type=pixels, help="result width in pixels, instead of --scale (the height follows)")
    add("--height", type=pixels, help="result height in pixels, instead of --scale")
    add("--longest", type=pixels, help="longest side of the result in pixels, instead of --scale")
    add("--sheet", type=Path, help="write a comparison sheet to this PNG")
    add("--sheet_pictures", type=bounded(int, 1), metavar="N", help="N of the pictures on it, evenly chosen (all)")
    add("--log", "--log_file", type=Path, help="append a JSON line per picture (status, size, seconds) to this file; "
                                               "under torchrun --log_file, for torchrun takes --log for its own")


def _add_file_flags(parser: argparse.ArgumentParser, ext: str) -> None:
    add = parser.add_argument
    add("-i", "--input", help="picture, folder or glob pattern")
    add("-o", "--output", help="result folder, or the result's file name for one picture (default: results; without "
                               "--input each testset folder's own VARPrediction)")
    add("--recursive", action="store_true", help="sub-folders of --input too; the results mirror them")
    add("--suffix", default="", help="text behind the names of the results, e.g. _x4")
    add("--ext", choices=("auto", "png", "jpg", "webp", "tif"), default=ext,
        help="kind of the result files; auto: the source's, PNG where that cannot be written (default: %(default)s)")
    add("--quality", type=bounded(int, 1, 100), default=95, help="of JPEG and WebP results (default: %(default)s)")
    add("--strip_metadata", action="store_true", help="write no EXIF, XMP and settings into the results")
    add("--frames", action="store_true", help="restore every frame of animations and multi-page files by itself")
    add("--max_pixels", type=bounded(int, 1), help="refuse sources with more pixels")
    add("--skip_existing", action="store_true", help="leave pictures out whose result is there")


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
        from .ranks import Ranks
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

    from .ranks import is_restart
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

    from .inputs import OutputNames, collect, default_jobs, jobs_for
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

    from .inputs import per_frame
    every = []
    for job in jobs:
        try:
            every += per_frame(job, frame_count(job.source))
        except ImageError:
            every.append(job)
    return every
