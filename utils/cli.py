"""Flags that the generating scripts share, and what they mean. Imports torch only once the flags are parsed."""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .device import choose_device, choose_dtype
from .flags import DTYPES, EIGHT_BIT, automatic, bounded

if TYPE_CHECKING:
    from models.config import GenerationConfig
    from models.varsr import VARSR

    from .generation import RestoreSettings

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
# What is used without --model, by super-resolution or not: the published file if it is there, else our own model.
PUBLISHED = {True: CHECKPOINTS / "VARSR.pth", False: CHECKPOINTS / "VARSR_C2I.pth"}
EMBEDDED = {True: CHECKPOINTS / "varsr-tiny", False: CHECKPOINTS / "varsr-tiny-c2i"}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Model, device and precision."""
    parser.add_argument("--model", help="model folder, published file or hub id (default: the published file in "
                                        "checkpoints/ if it is there, else the embedded model)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES, *EIGHT_BIT), default="auto",
                        help="auto: bf16 (GPU, or a CPU that computes in it), else fp16 on a GPU, fp32 on a CPU; "
                             "int8, fp8: the transformer in 8 bits (fp8 on GPUs alone)")


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
    add("--color_fix", choices=("adain", "wavelet", "none"), default="wavelet",
        help="colours after the LR picture (default: %(default)s)")


def load_model(args: argparse.Namespace, super_resolution: bool = True) -> tuple[VARSR, str]:
    """The model of a kind that the flags ask for, and a line that says which it is.

    Raises ValueError or FileNotFoundError with the remedy.
    """
    from models.varsr import VARSR
    from models.weights.load import require_kind

    from .device import warn_of_imitation
    from .memory import keep_freed_memory
    device = choose_device(args.device)
    eight_bit = args.dtype if args.dtype in EIGHT_BIT else None
    check_eight_bit(device, eight_bit)
    dtype = choose_dtype(args.dtype, device)
    warn_of_imitation(device, dtype)
    if device.type == "cpu":
        keep_freed_memory()
    published, embedded = PUBLISHED[super_resolution], EMBEDDED[super_resolution]
    source = args.model or (published if published.is_file() else embedded)
    model = VARSR.from_pretrained(source, device=device, dtype=dtype)
    require_kind(model.config, super_resolution, source)
    make_fast(model, eight_bit, getattr(args, "compile", False))
    precision = eight_bit or next(s for s, name in DTYPES.items() if f"torch.{name}" == str(dtype))
    note = "" if source != embedded else f" (embedded model; put the published {published.name} and VQVAE.pth into " \
        "checkpoints/ for the full one)"
    return model, f"model {source}, {device}, {precision}{note}"


def check_eight_bit(device: torch.device, eight_bit: str | None) -> None:
    """Raise ValueError with the remedy where a device has no, or no fast, products in 8 bits."""
    from models.speed.packed import require_gpu
    if eight_bit == "fp8" and device.type == "cpu":
        raise ValueError("--dtype fp8 is for GPUs: CPUs only imitate it, slowly (int8 is fast there)")
    if eight_bit and device.type == "cuda":
        require_gpu(device, eight_bit)


def make_fast(model: VARSR, eight_bit: str | None = None, compiled: bool = False) -> VARSR:
    """Make a loaded model ready for generation alone, its linears packed where that helps.

    eight_bit: see `VARSR.pack`; compiled: see `VARSR.compile`. Raises ValueError where the device cannot compute in it.
    """
    from models.speed.packed import packing_works
    model.for_inference()
    packable = model.device.type == "cpu" and packing_works(model.dtype)
    if packable or eight_bit:
        model.pack(eight_bit)
    return model.compile() if compiled else model


def generation_options(args: argparse.Namespace, model: VARSR) -> GenerationConfig:
    """The model's own sampling settings, or the fast ones, overridden by the flags that were given."""
    from .fast import fast_generation
    options = fast_generation(model.config) if getattr(args, "fast", False) else model.config.generation
    names = [field.name for field in dataclasses.fields(options)]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    options = dataclasses.replace(options, **given)
    model.config.check_options(options)
    return options


def restore_settings(args: argparse.Namespace, model: VARSR, tiled: bool = False) -> RestoreSettings:
    """Restoration settings from the flags; `tiled`: the model's guidance for tiled pictures where no flag says one."""
    from .fast import fast_pruning
    from .generation import RestoreSettings
    generation = generation_options(args, model)
    if tiled and args.cfg is None and generation.tiled_cfg is not None:
        generation = dataclasses.replace(generation, cfg=generation.tiled_cfg)
    return RestoreSettings(generation, seed=args.seed, color_fix=args.color_fix,
                           batch_size=None if args.batch_size == "auto" else args.batch_size,
                           overlap=args.tile_overlap, fastvar=fast_pruning(model.config) if args.fast else None)
