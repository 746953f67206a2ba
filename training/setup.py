"""The stages of `train.py` with their models, data and settings, from its flags."""
from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dataloader.class_crops import class_folders
from dataloader.pairs import PairSource
from models.varsr import VARSR
from utils.device import training_precision
from utils.errors import UserError
from utils.ranks import Ranks

from .data import class_pairs, held_out_pairs, photo_pairs
from .decoder import DecoderSettings, DecoderStage
from .detail import DetailSettings, DetailStage
from .flags import CLASSES, COMPILE_MODES, PRECISIONS, given
from .model import build_model
from .perceptual import find_perceptual
from .transformer import TransformerSettings, TransformerStage
from .validation import Validation

DEFAULT_ITERATIONS = 20000
ZERO_WARMUP = 0.02  # what --wp=0 means in the published command line
VALIDATION_SEED = 12345

# Flags and the fields of the settings they set.
SHARED_FIELDS = {"ema": "ema", "twd": "weight_decay"}
TRANSFORMER_FIELDS = {**SHARED_FIELDS, "ac": "accumulation", "afuse": "fused", "ls": "label_smoothing",
                      "wp0": "warmup_start", "wpe": "final", "sche": "schedule", "error_rate": "error_rate",
                      "scale_balance": "scale_balance"}
DECODER_FIELDS = {**SHARED_FIELDS, "ssim_weight": "ssim_weight"}
DETAIL_FIELDS = {**SHARED_FIELDS, **{name: name for name in (
    "pixel_weight", "chroma_weight", "perceptual_weight", "map_weight", "adversary", "adversarial_weight", "pool_size",
    "renew_every")}}


@dataclass(frozen=True)
class Setup:
    """A stage that is ready to be made. Making it needs all ranks, so nothing can fail any more on one alone."""

    settings: TransformerSettings | DecoderSettings | DetailSettings
    model: VARSR
    make: Callable[[], TransformerStage | DecoderStage | DetailStage]


def transformer_setup(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """Super-resolution or class-to-image. Raises ValueError, OSError or CheckpointError for flags and files."""
    batch = _batch_size(args, ranks, TransformerSettings.batch_size)
    accumulation = args.ac or 1
    if args.stage == CLASSES:
        model = _class_model(args)
        data = class_pairs(args, model.config.image_size, batch, ranks)
    else:
        model = build_model(args)
        data = photo_pairs(args, model.config.image_size, batch, ranks)
    changes = {**_fields(args, TRANSFORMER_FIELDS), "batch_size": batch, "precision": _precision(args, device),
               "seed": args.seed,
               "max_iters": _iterations(args, data.pictures, batch * accumulation * ranks.world)}
    if args.tblr is not None:
        changes["learning_rate"] = args.tblr * accumulation
    if args.twde:
        changes["final_weight_decay"] = args.twde
    if args.wp is not None:
        changes["warmup_share"] = args.wp or ZERO_WARMUP
    settings = TransformerSettings(**changes)
    _tune(args, model, device)
    if args.stage == CLASSES:
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        validation = data.pairs.positives_only().draw(settings.val_batch, generator, device)
    else:
        validation = held_out_pairs(args, data.pairs, model.config.image_size, settings.val_batch, settings.precision)

    def make() -> TransformerStage:
        stage = TransformerStage(model, data.pairs, validation, settings, device, ranks, args.fsdp)
        if ranks.world > 1:  # from here on, what is drawn in a step (stochastic depth, wrong codes) is each rank's own
            torch.manual_seed(args.seed + ranks.rank)
        return stage
    return Setup(settings, model, make)


def _class_model(args: argparse.Namespace) -> VARSR:
    names = tuple(folder.name for folder in class_folders(args.data))
    model = build_model(args, names)
    if model.config.num_classes != len(names):
        raise UserError(f"{args.data} holds {len(names)} classes, the model of --init has {model.config.num_classes}")
    return model


def decoder_setup(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The decoder on generated latents. Raises ValueError, OSError or CheckpointError for flags and files."""
    parts = _generating_parts(args, device, ranks, DecoderSettings, DECODER_FIELDS)
    return Setup(parts.settings, parts.model, lambda: DecoderStage(*parts, device))


def detail_setup(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The detail branch on restored pictures. Raises as `decoder_setup`, and where there is no perceptual network."""
    parts, perceptual = _generating_parts(args, device, ranks, DetailSettings, DETAIL_FIELDS), find_perceptual(device)
    if perceptual.features is None:
        raise UserError(f"--stage detail needs a perceptual network: {perceptual.description}")
    return Setup(parts.settings, parts.model, lambda: DetailStage(*parts, perceptual, device))


class GeneratingParts(NamedTuple):
    """What a stage that trains on generated samples is made of."""

    model: VARSR
    pairs: PairSource
    validation: Validation
    settings: DecoderSettings | DetailSettings


def _generating_parts(args: argparse.Namespace, device: torch.device, ranks: Ranks,
                      kind: type[DecoderSettings | DetailSettings], fields: dict[str, str]) -> GeneratingParts:
    if ranks.world > 1:
        raise UserError(f"--stage {args.stage} trains on one device: start it without torchrun")
    batch = _batch_size(args, ranks, kind.batch_size)
    model = build_model(args)
    data = photo_pairs(args, model.config.image_size, batch, ranks)
    changes = {**_fields(args, fields), "batch_size": batch, "precision": _precision(args, device),
               "seed": args.seed, "max_iters": _iterations(args, data.pictures, batch)}
    if args.tblr is not None:
        changes["learning_rate"] = args.tblr
    settings = kind(**changes)
    _tune(args, model, device)
    validation = held_out_pairs(args, data.pairs, model.config.image_size, settings.val_batch, settings.precision)
    return GeneratingParts(model, data.pairs, validation, settings)


def _precision(args: argparse.Namespace, device: torch.device) -> str:
    return training_precision(None if args.fp16 is None else PRECISIONS[args.fp16], device)


def _fields(args: argparse.Namespace, fields: dict[str, str]) -> dict[str, Any]:
    """Settings that flags give."""
    changes = {fields[flag]: value for flag, value in given(args, *fields).items()}
    if args.tclip is not None:
        changes["clip"] = max(args.tclip, 0.0)
    return changes


def _batch_size(args: argparse.Namespace, ranks: Ranks, default: int) -> int:
    """Of one process and part of a step."""
    if args.bs is None:
        return args.batch_size or default
    parts = (args.ac or 1) * ranks.world
    if args.bs % parts:
        raise UserError(f"--bs {args.bs} cannot be shared by {ranks.world} processes in {args.ac or 1} parts: choose "
                         f"a multiple of {parts}")
    return args.bs // parts


def _iterations(args: argparse.Namespace, pictures: int, step: int) -> int:
    """Length of the run; `step` is the batch of a whole step."""
    if args.ep is None:
        return args.max_iters or DEFAULT_ITERATIONS
    return max(round(args.ep * math.ceil(pictures / step)), 1)


def _tune(args: argparse.Namespace, model: VARSR, device: torch.device) -> None:
    """What makes a step cheaper without changing it (TensorFloat-32: hardly)."""
    model.transformer.checkpointing = args.checkpointing
    for mode, modules in ((COMPILE_MODES[args.tfast], model.transformer.blocks),
                          (COMPILE_MODES[args.vfast], [model.vqvae.encoder])):
        if mode is not None:
            for module in modules:
                module.compile(mode=mode)
    if device.type != "cuda":
        if args.tf32 is not None:
            raise UserError("--tf32 cannot act on a CPU: leave it out")
        return
    torch.set_float32_matmul_precision("highest" if args.tf32 is False else "high")
    torch.backends.cudnn.allow_tf32 = args.tf32 is not False
