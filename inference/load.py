"""The model that a script's flags ask for, ready for generation."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.device import choose_device, choose_dtype
from utils.flags import DTYPES, EIGHT_BIT

if TYPE_CHECKING:
    from models.varsr import VARSR

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
# What is used without --model, by super-resolution or not: the published file if it is there, else our own model.
PUBLISHED = {True: CHECKPOINTS / "VARSR.pth", False: CHECKPOINTS / "VARSR_C2I.pth"}
EMBEDDED = {True: CHECKPOINTS / "varsr-tiny", False: CHECKPOINTS / "varsr-tiny-c2i"}


def load_model(args: argparse.Namespace, super_resolution: bool = True) -> tuple[VARSR, str]:
    """The model of a kind that the flags ask for, and a line that says which it is.

    Raises ValueError or FileNotFoundError with the remedy.
    """
    from models.varsr import VARSR
    from models.weights.load import require_kind
    from utils.device import warn_of_imitation
    from utils.memory import keep_freed_memory
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
