"""The restoring scripts: the flags that they share, and their common course: jobs, model, run, report.

Light enough for `--help`: torch is imported once the flags are parsed.
"""
from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.files import require_folder
from utils.flags import DTYPES, EIGHT_BIT, automatic, bounded, set_up_logging

if TYPE_CHECKING:
    from models.varsr import VARSR
    from utils.ranks import Ranks

    from .jobs import Found, Job
    from .redo import Redo
    from .report import Report
    from .runner import RunOptions
    from .settings import LRConsistency, ModelDescription, RestoreSettings

    Adjust = Callable[[VARSR, RestoreSettings, RunOptions], tuple[RestoreSettings, RunOptions]]

log = logging.getLogger(__name__)

VERSION = "0.1.0"
MAKING = "VARSR"  # what a result's file says of its making is called so
PIPE = "-"  # in place of a file: standard input or output
SHEET_KINDS = (".png", ".jpg", ".jpeg", ".webp")
PRUNING = ("fastvar_second_last_ratio", "fastvar_last_ratio", "fastvar_ratios", "fastvar_later_layer_start",
           "fastvar_min_keep", "fastvar_mode")
# Flags that are without effect unless another one is given.
PARTNERS = {"uncertainty_samples": "uncertainty", "lr_noise": "lr_consistency", "sheet_pictures": "sheet",
            "intermediate_max": "export_intermediate", **dict.fromkeys(PRUNING, "fastvar")}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Model, device and precision."""
    parser.add_argument("--model", help="model folder, published file or hub id (default: the published file in "
                                        "checkpoints/ if it is there, else the embedded model)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES, *EIGHT_BIT), default="auto",
                        help="auto: bf16 (GPU, or a CPU that computes in it), else fp16 on a GPU, fp32 on a CPU "
                             "(there for classes always, so that batches draw alike); int8, fp8: the transformer in "
                             "8 bits (fp8 on GPUs alone)")


def add_compile_flag(parser: argparse.ArgumentParser) -> None:
    """For scripts that make many pictures and look at none while it is made."""
    parser.add_argument("--compile", action="store_true",
                        help="PyTorch's compiler and, on GPUs, CUDA graphs: the first picture takes a minute more, "
                             "the others less")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How codes are chosen; unset flags leave the model's own defaults."""
    add = parser.add_argument
    add("--cfg", type=bounded(float, 0), help="guidance strength (default: the model's own; published 6.0)")
    add("--cfg_from_scale", type=bounded(int, 0), metavar="K",
        help="no guidance, and half the work, before scale K, counted from 0 (default: the model's own, 0)")
    add("--refiner_steps", type=bounded(int, 2), metavar="N",
        help="steps of the diffusion refiner (default: the model's own, 10)")
    add("--top_k", type=bounded(int, 0), help="sample from the k likeliest codes; 1: the likeliest, 0: all")
    add("--top_p", type=bounded(float, 0, 1, open_low=True), help="sample from the nucleus of this mass")
    add("--seed", type=bounded(int, 0), default=0, help="the same seed gives the same pictures (default: 0)")


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """Sampling, and what restoring adds to it."""
    add_sampling_flags(parser)
    add = parser.add_argument
    add("--fast", action="store_true",
        help="about twice as fast at a measured cost (docs/performance.md): --cfg_from_scale, --refiner_steps and "
             "token pruning; flags that are given win")
    add("--scale", type=bounded(float, 1, 16), help="up-scaling factor (default: the model's own, 4)")
    add("--batch_size", "--tile_batch", type=automatic, default="auto",
        help="windows at a time; auto: what suits the model and the free memory")
    add("--tile_overlap", type=bounded(float, 0, 0.9), default=0.25,
        help="share of a window that its neighbour covers too (default: %(default)s)")
    add("--fidelity", type=bounded(float, 0, 1),
        help="between the sharpest picture, 0, and the most faithful, 1, for models with a detail branch (default: the "
             "model's own)")
    add("--lr_consistency", type=bounded(float, 0, 255), metavar="EPS",
        help="keep the result, reduced to the LR picture's size, within EPS 8-bit levels of it (default: no such "
             "promise; docs/consistency.md)")
    add("--lr_noise", type=bounded(float, 0, 255), metavar="SIGMA",
        help="deviation of the LR picture's noise in levels, which --lr_consistency then does not reproduce (default: "
             "0)")
    add("--uncertainty", action="store_true",
        help="write NAME_uncertainty.png too: how far each pixel may be from the truth, 16-bit gray, 256 steps a level "
             "(docs/uncertainty.md)")
    add("--uncertainty_samples", type=bounded(int, 1, 64), metavar="N",
        help="look at the spread of N further results for it, each for the time of the fine scales")
    add("--color_fix", choices=("adain", "wavelet", "none"), default="wavelet",
        help="colours after the LR picture (default: %(default)s)")


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
    add("--sheet", type=Path, help="write a comparison sheet to this PNG, of results of up to 4 megapixels")
    add("--sheet_pictures", type=bounded(int, 1), metavar="N", help="N of the pictures on it, evenly chosen (all)")
    add("--save_tokens", action="store_true", help="write NAME_tokens.safetensors beside each result, from which parts "
                                                   "of it can be drawn anew")
    add("--resume_from", type=Path, metavar="RESULT", help="draw a part of this earlier result of --input anew, and "
                                                           "keep all the rest")
    add("--mask", type=Path, help="which part: a picture of the result's size, white where it is drawn anew")
    add("--log", "--log_file", type=Path, help="append a JSON line per picture (status, size, seconds) to this file; "
                                               "under torchrun --log_file, for torchrun takes --log for its own")


def _add_file_flags(parser: argparse.ArgumentParser, ext: str) -> None:
    add = parser.add_argument
    add("-i", "--input", help="picture, folder or glob pattern; - reads a picture from standard input")
    add("-o", "--output", help="result folder, or the result's file name for one picture, - for standard output "
                               "(default: results; without --input each testset folder's own VARPrediction)")
    add("--recursive", action="store_true", help="sub-folders of the folder --input too; the results mirror them")
    add("--suffix", default="", help="text behind the names of the results, e.g. _x4")
    add("--ext", choices=("auto", "png", "jpg", "webp", "tif"), default=ext,
        help="kind of the result files; auto: the source's if it is one of these, else PNG (default: %(default)s)")
    add("--quality", type=bounded(int, 1, 100), default=95, help="of JPEG and WebP results (default: %(default)s)")
    add("--strip_metadata", action="store_true", help="write no EXIF, XMP and settings into the results")
    add("--frames", action="store_true", help="restore every frame of animations and multi-page files by itself")
    add("--max_pixels", type=bounded(int, 1), help="refuse sources with more pixels")
    add("--skip_existing", action="store_true", help="leave pictures out whose result is there")


def add_fastvar_flags(parser: argparse.ArgumentParser) -> None:
    """What is pruned; None of what is not given, so that the model's pruning has the default (`fastvar_config`)."""
    ratio = bounded(float, 0, 1, open_high=True)
    add = parser.add_argument
    add("--fastvar", action="store_true", help="prune tokens")
    add("--fastvar_second_last_ratio", type=ratio, help="drop ratio of the last scale but one (0.4)")
    add("--fastvar_last_ratio", type=ratio, help="drop ratio of the last scale (0.3)")
    add("--fastvar_ratios", type=ratio, nargs="+", metavar="RATIO",
        help="drop ratios of the last scales, the last one last, instead of the two above")
    add("--fastvar_later_layer_start", type=bounded(int, 0), help="first layer that is pruned (3)")
    add("--fastvar_min_keep", type=bounded(int, 1), help="tokens that stay in any case (64)")
    add("--fastvar_mode", choices=("separate", "shared"),
        help="separate: attention and feed-forward choose tokens for themselves; shared: one choice a layer, faster "
             "(separate)")
    add("--fastvar_quiet", action="store_true", help="do not say what is pruned")


def run_restoration(args: argparse.Namespace, script: Path, adjust: Adjust | None = None) -> Report:
    """Restore what the flags name, print the summary. Raises ValueError or OSError for a mistake in the flags, before
    anything is loaded or written wherever that can be.

    adjust: what a script changes in the settings and options.
    """
    set_up_logging()
    _check_flags(args)
    with ExitStack() as stack:
        if args.output == PIPE:  # the picture is all that goes there
            stack.enter_context(redirect_stdout(sys.stderr))
        args, hand_on = stack.enter_context(_piped(args))
        jobs, found = _jobs(args, script.resolve().parent / "testset")
        redo = _redo(args, jobs)
        from .settings import load_model, restore_settings
        model, description = load_model(args)
        settings = restore_settings(args, model)
        if redo is not None:
            settings = redo.settings(args, model, settings)
        options = _run_options(args, settings, redo)
        if adjust is not None:
            settings, options = adjust(model, settings, options)
        options = _with_making(options, settings, description)
        from utils.ranks import Ranks
        ranks = Ranks.from_environment()
        stack.callback(ranks.close)
        report = _run(model, settings, options, ranks, jobs, found, description)
        hand_on()
    return report


@contextmanager
def _piped(args: argparse.Namespace) -> Iterator[tuple[argparse.Namespace, Callable[[], None]]]:
    """The flags with files in place of standard input and output, and what hands the result on."""
    if PIPE not in (args.input, args.output):
        yield args, lambda: None
        return
    from pictures.picture import read_header

    from .jobs import AUTO, SAME_KIND
    with TemporaryDirectory(prefix="varsr-") as folder:
        source, result = Path(args.input), None
        if args.input == PIPE:
            source = Path(folder, "stdin")
            source.write_bytes(sys.stdin.buffer.read())
        if args.output == PIPE:
            ending = SAME_KIND.get(read_header(source).kind, ".png") if args.ext == AUTO else f".{args.ext}"
            result = Path(folder, f"stdout{ending}")

        def hand_on() -> None:
            if result is not None and result.exists():
                with suppress(BrokenPipeError), open(sys.__stdout__.fileno(), "wb", closefd=False) as stream:
                    stream.write(result.read_bytes())
        files = {"input": str(source), "output": args.output if result is None else str(result)}
        yield argparse.Namespace(**{**vars(args), **files}), hand_on


def _run(model: VARSR, settings: RestoreSettings, options: RunOptions, ranks: Ranks, jobs: list[Job],
         found: Found, description: ModelDescription) -> Report:
    from .runner import Runner
    size = model.config.image_size
    if ranks.rank == 0:
        cfg, tiled = settings.generation.cfg, settings.generation.tiled_cfg
        print(f"{description}; scale {settings.generation.scale:g}, cfg {cfg:g}, results larger than {size}x{size} are "
              f"made of windows{'' if tiled is None else f' (cfg {tiled:g})'}")
    report = Runner(model, settings, options, ranks).run(jobs, found.failures)
    if ranks.rank == 0:
        report.left_out += found.left_out
        print(report.summary())
    return report


def _check_flags(args: argparse.Namespace) -> None:
    """What can be found wrong before anything is read or loaded."""
    from utils.ranks import started_processes
    _check_sizes(args)
    for flag, partner in PARTNERS.items():
        if _given(args, flag) and not _given(args, partner):
            raise UserError(f"--{flag} is for --{partner}: give both, or leave it out")
    if args.uncertainty and args.mask is not None:
        raise UserError("--uncertainty is for whole pictures: leave it out with --mask")
    for flag in ("uncertainty", "save_tokens", "export_intermediate"):
        if args.output == PIPE and _given(args, flag):
            raise UserError(f"--{flag}: standard output is for the picture alone, name a file with --output")
    for flag, path in (("--log", args.log), ("--sheet", args.sheet)):
        if path is not None and path.is_dir():
            raise UserError(f"{flag} {path} is a folder: name a file")
        if path is not None:
            require_folder(flag, path.parent)
    if args.sheet is not None and args.sheet.suffix.lower() not in SHEET_KINDS:
        raise UserError(f"--sheet {args.sheet}: a sheet is a {', '.join(SHEET_KINDS[:-1])} or {SHEET_KINDS[-1]} file")
    if args.output == PIPE and (args.input is None or args.skip_existing or args.frames):
        raise UserError("--output - is one picture: name it with --input, leave out --skip_existing and --frames")
    if PIPE in (args.input, args.output) and started_processes() > 1:
        raise UserError("-: standard input and output are for one process, start it without torchrun")
    if (args.resume_from is None) != (args.mask is None):
        given, other = ("--mask", "--resume_from") if args.resume_from is None else ("--resume_from", "--mask")
        raise UserError(f"{given} goes with {other}: one names the result, the other what of it is drawn anew")
    if args.mask is not None and args.input is None:
        raise UserError("--mask is for one picture: name it with --input")
    for flag in ("compare", "export_intermediate", "lr_consistency"):
        if args.mask is not None and _given(args, flag):
            raise UserError(f"--{flag} is for whole pictures: leave it out with --mask")


def _given(args: argparse.Namespace, flag: str) -> bool:
    """Whether a flag was given that a script may not have; 0 is a value like others."""
    value = getattr(args, flag, None)
    return value is not None and value is not False


def _check_sizes(args: argparse.Namespace) -> None:
    """Only one way to say how large the results shall be."""
    ways = [("--scale", args.scale), ("--longest", args.longest), ("--width or --height", args.width or args.height)]
    given = [name for name, value in ways if value is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} both say how large the results are: give one of them")


def making_of(settings: RestoreSettings, description: ModelDescription) -> tuple[tuple[str, str], ...]:
    """What a result's file says of its making, for `ResultOptions.text`."""
    generation = " ".join(f"{name}={value}" for name, value in dataclasses.asdict(settings.generation).items())
    return (("Software", f"VARSR {VERSION}"),
            (MAKING, f"{description.identity}; seed={settings.seed} {generation} color_fix={settings.color_fix} "
                     f"overlap={settings.overlap:g}{'' if settings.fastvar is None else ' fastvar'}"
                     f"{_promise(settings.lr_consistency)}"))


def _promise(consistency: LRConsistency | None) -> str:
    return "" if consistency is None else f" lr_consistency={consistency.epsilon:g} lr_noise={consistency.noise:g}"


def _redo(args: argparse.Namespace, jobs: list[Job]) -> Redo | None:
    """What is redone, if that is asked for, checked before the model is loaded."""
    if args.resume_from is None:
        return None
    from models.weights.load import identity

    from .redo import Redo
    from .settings import model_source
    return Redo.of_flags(args, jobs, identity(model_source(args)))


def _with_making(options: RunOptions, settings: RestoreSettings, description: ModelDescription) -> RunOptions:
    """The options with what results say of their making, once all settings are known."""
    from .tokens import require_codes
    if options.save_tokens:
        require_codes(settings.generation)
    text = dict(making_of(settings, description))
    if options.redo is not None:
        text[MAKING] = options.redo.line(settings)
    return dataclasses.replace(options, result=dataclasses.replace(options.result, text=tuple(text.items())))


def _run_options(args: argparse.Namespace, settings: RestoreSettings, redo: Redo | None) -> RunOptions:
    from pictures.picture import MAX_PIXELS
    from pictures.result_file import ResultOptions
    from utils.ranks import is_restart

    from .jobs import SizeRequest
    from .runner import RunOptions
    return RunOptions(
        size=SizeRequest(settings.generation.scale, args.width, args.height, args.longest) if redo is None
        else redo.size(),
        result=ResultOptions(strip_metadata=args.strip_metadata, quality=args.quality),
        skip_existing=args.skip_existing or is_restart(), max_pixels=args.max_pixels or MAX_PIXELS, sheet=args.sheet,
        sheet_pictures=args.sheet_pictures, log=args.log, save_tokens=args.save_tokens, redo=redo)


def _jobs(args: argparse.Namespace, testsets: Path) -> tuple[list[Job], Found]:
    """The jobs, all names checked, and what could not be listed or is left out."""
    from pictures.formats import InputError, other_files_in
    from pictures.picture import MAX_PIXELS
    from utils.ranks import is_restart

    from .jobs import EARLIER_RESULTS, Found, OutputNames, collect, default_jobs, jobs_for, settled
    names = OutputNames(args.suffix, args.ext)
    if args.input is None:
        if args.output is not None:
            raise InputError("--output goes with --input: without it results stay in their testset folders")
        jobs, found = default_jobs(testsets, names), Found()
        for folder in {job.source.parent for job in jobs}:
            found.left_out.update(path.suffix.lower() for path in other_files_in(folder))
    else:
        output = Path(args.output or "results")
        found = collect(args.input, args.recursive, output)
        jobs = jobs_for(found.pictures, output, names)
    if args.frames:
        jobs = _frames(jobs, args.max_pixels or MAX_PIXELS)
    jobs, earlier = settled(jobs, {"--sheet": args.sheet, "--log": args.log},
                            getattr(args, "export_intermediate", False), not (args.skip_existing or is_restart()),
                            args.save_tokens, args.uncertainty, (args.mask, args.resume_from))
    if earlier:
        found.left_out[EARLIER_RESULTS] += earlier
    _tell_unmatched(jobs)
    return jobs, found


def _tell_unmatched(jobs: list[Job]) -> None:
    """A folder of originals of which none belongs to a picture is a mistake that nothing else would show."""
    from pictures.formats import HR_FOLDER, LR_FOLDER
    for folder in {job.source.parent for job in jobs if job.source.parent.name == LR_FOLDER}:
        originals = folder.parent / HR_FOLDER
        if originals.is_dir() and not any(job.reference for job in jobs if job.source.parent == folder):
            log.warning("%s: no picture there has the name of one in %s: nothing is measured", originals, folder)


def _frames(jobs: list[Job], max_pixels: int) -> list[Job]:
    """A job for every frame; files that cannot be read stay one job, which will say why."""
    from pictures.formats import ImageError
    from pictures.picture import read_header

    from .jobs import per_frame
    every = []
    for job in jobs:
        try:
            every += per_frame(job, read_header(job.source, 0, max_pixels).frames)
        except ImageError:
            every.append(job)
    return every
