"""What the stages of `train.py` have in common before they begin: data, settings and tuning from its flags."""
from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from dataloader.degradation import Degradation, DegradationConfig
from dataloader.entries import find_entries
from dataloader.held_out import held_out
from dataloader.pairs import BatchLoader, PairSource, SampleSource, WithNegatives
from dataloader.photo_crops import MIRRORED, UPRIGHT, PhotoCrops
from models.config import HIGH_QUALITY, LOW_QUALITY, VARSRConfig
from models.varsr import VARSR
from utils.device import training_device, training_precision
from utils.errors import UserError
from utils.ranks import Ranks

from .flags import COMPILE_MODES, PRECISIONS, SR, crops_of, given
from .loop import Stage
from .model import build_model
from .schedule import TIMED_LENGTH
from .validation import Validation, ValidationSettings

DEFAULT_ITERATIONS = 20000
NEGATIVE_SHARE = 0.1
DEFAULT_DATA, DEFAULT_NEGATIVES = "trainset", "trainset_neg"

# Flags and the fields of the settings they set, in every stage.
SHARED_FIELDS = {"ema": "ema", "twd": "weight_decay"}

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Setup:
    """A stage that is ready to be made. Making it needs all ranks, so nothing can fail any more on one alone."""

    settings: Any  # the stage's own dataclass
    model: VARSR
    make: Callable[[], Stage]


class TrainingData(NamedTuple):
    """Where pairs come from, the pictures below them, and how many of those make an epoch."""

    pairs: PairSource
    crops: SampleSource
    pictures: int


def loader(args: argparse.Namespace, source: SampleSource, batch_size: int, ranks: Ranks) -> BatchLoader:
    """Batches of a source's samples, cut on the device (--data_on_device) or drawn ahead by --workers."""
    if args.data_on_device:
        from dataloader.resident import ResidentLoader
        return ResidentLoader(source, batch_size, seed=args.seed, rank=ranks.rank, ranks=ranks.world)
    return BatchLoader(source, batch_size, seed=args.seed, rank=ranks.rank, ranks=ranks.world,
                       workers=max(args.workers, 0), pin_memory=training_device(args.device).type == "cuda")


def photo_pairs(args: argparse.Namespace, size: int, batch_size: int, ranks: Ranks) -> TrainingData:
    """Crops of the training photographs and their degradation on the fly."""
    crops = _crops(args, args.data, size, HIGH_QUALITY)
    negative_root = args.data_neg or _default_negatives(args)
    negatives = _crops(args, negative_root, size, LOW_QUALITY) if negative_root else None
    share = 0.0
    if args.stage == SR:
        share = NEGATIVE_SHARE if args.negative_share is None else args.negative_share
    changes = given(args, "group")
    if args.upsample is not None:
        changes["upsample_modes"] = tuple(args.upsample.split(","))
    degradation = Degradation(DegradationConfig.load(light_probability=args.light or 0.0, **changes))
    pairs = PairSource(loader(args, WithNegatives(crops, share, negatives), batch_size, ranks),
                       degradation.and_upsample, degradation.config.group, negatives_are_degraded=negatives is None)
    return TrainingData(pairs, crops, len(crops))


def _default_negatives(args: argparse.Namespace) -> str | None:
    """trainset_neg, where the published layout is used and holds pictures."""
    used = args.stage == SR and args.data == DEFAULT_DATA and os.path.isdir(DEFAULT_NEGATIVES)
    return DEFAULT_NEGATIVES if used and find_entries(DEFAULT_NEGATIVES) else None


def _crops(args: argparse.Namespace, root: str, size: int, label: int) -> SampleSource:
    if crops_of(args) == "centre":
        from dataloader.centre_crops import CentreCrops
        enlarge = args.mid_reso if label == HIGH_QUALITY else None
        return CentreCrops(root, size, label=label, enlarge=enlarge, flip=args.hflip is not False)
    return resident(args, PhotoCrops(root, size, **_symmetries(args)))


def _symmetries(args: argparse.Namespace) -> dict[str, int]:
    return {} if args.hflip is None else {"symmetries": MIRRORED if args.hflip else UPRIGHT}


def resident(args: argparse.Namespace, crops: PhotoCrops) -> SampleSource:
    """The same crops, with --data_on_device on the training device."""
    if not args.data_on_device:
        return crops
    from dataloader.resident import ResidentCrops
    return ResidentCrops(crops, training_device(args.device))


def held_out_pairs(args: argparse.Namespace, crops: SampleSource, size: int, count: int, precision: str) -> Validation:
    """The pairs that a stage is validated on: of --val_data, or seeded training crops."""
    degradation = Degradation(DegradationConfig.load(light_probability=args.light or 0.0))
    return Validation(held_out(args.val_data, size, count, degradation, crops), ValidationSettings(precision=precision))


class GeneratingParts(NamedTuple):
    """What a stage that trains on generated samples is made of."""

    model: VARSR
    pairs: PairSource
    validation: Validation
    settings: Any


def generating_parts(args: argparse.Namespace, device: torch.device, ranks: Ranks, kind: type[Settings],
                     fields: dict[str, str]) -> GeneratingParts:
    """For settings of a kind, of which flags set `fields`. Raises ValueError, OSError or CheckpointError for flags and
    files."""
    model = build_model(args)
    data = photo_pairs(args, model.config.image_size, args.fresh or kind.fresh, ranks)
    settings = generating_settings(args, device, ranks, kind, fields, data.pictures)
    tune(args, model, device)
    validation = held_out_pairs(args, data.crops, model.config.image_size, settings.val_batch, settings.precision)
    return GeneratingParts(model, data.pairs, validation, settings)


def generating_settings(args: argparse.Namespace, device: torch.device, ranks: Ranks, kind: type[Settings],
                        fields: dict[str, str], pictures: int) -> Settings:
    """The settings of a stage that trains on generated samples. pictures: of an epoch. Raises ValueError."""
    if ranks.world > 1:
        raise UserError(f"--stage {args.stage} trains on one device: start it without torchrun")
    batch = batch_size(args, ranks, kind.batch_size)
    changes = {**setting_fields(args, fields), "batch_size": batch, "precision": precision(args, device),
               "seed": args.seed, "max_iters": iterations(args, pictures, batch), "fresh": args.fresh or kind.fresh,
               "pool_on_device": args.data_on_device}
    if args.tblr is not None:
        changes["learning_rate"] = args.tblr
    return kind(**changes)


def class_crops(args: argparse.Namespace, config: VARSRConfig) -> tuple[SampleSource, SampleSource]:
    """Crops of a class for each folder of --data, and those that are validated on: of --val_data, or the same."""
    from dataloader.class_crops import ClassCrops
    crops = ClassCrops(args.data, config.image_size, **_symmetries(args))
    if config.num_classes != len(crops.names):
        raise UserError(f"{args.data} holds {len(crops.names)} classes, the model of --init has {config.num_classes}")
    if config.class_names and config.class_names != crops.names:
        raise UserError(f"{args.data} holds the classes {', '.join(crops.names)}, the model of --init has "
                        f"{', '.join(config.class_names)}: name the folders likewise")
    if not args.val_data:
        return crops, crops
    held_out = ClassCrops(args.val_data, config.image_size)
    if held_out.names != crops.names:
        raise UserError(f"--val_data {args.val_data} holds the classes {', '.join(held_out.names)}, --data {args.data} "
                        f"has {', '.join(crops.names)}: the folders must have the same names")
    return crops, held_out


def precision(args: argparse.Namespace, device: torch.device) -> str:
    """What --fp16 says, or what suits the device."""
    return training_precision(None if args.fp16 is None else PRECISIONS[args.fp16], device)


def setting_fields(args: argparse.Namespace, fields: dict[str, str]) -> dict[str, Any]:
    """Settings that flags give."""
    fields = {**SHARED_FIELDS, **fields}
    changes = {fields[flag]: value for flag, value in given(args, *fields).items()}
    if args.tclip is not None:
        changes["clip"] = max(args.tclip, 0.0)
    return changes


def batch_size(args: argparse.Namespace, ranks: Ranks, default: int) -> int:
    """Of one process and part of a step."""
    if args.bs is None:
        return args.batch_size or default
    parts = (args.ac or 1) * ranks.world
    if args.bs % parts:
        raise UserError(f"--bs {args.bs} cannot be shared by {ranks.world} processes in {args.ac or 1} parts: choose "
                        f"a multiple of {parts}")
    return args.bs // parts


def iterations(args: argparse.Namespace, pictures: int, step: int) -> int:
    """Length of the run's course; `step` is the batch of a whole step."""
    if args.ep is None:
        return length(args, DEFAULT_ITERATIONS)
    return max(round(args.ep * math.ceil(pictures / step)), 1)


def length(args: argparse.Namespace, default: int) -> int:
    """Of the course of a run that is not counted in epochs."""
    return TIMED_LENGTH if args.minutes is not None else args.max_iters or default


def tune(args: argparse.Namespace, model: VARSR, device: torch.device) -> None:
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
