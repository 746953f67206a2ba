"""Training samples from the flags: positives, negatives, degradation, workers that draw ahead, held-out pairs."""
from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from dataloader.centre_crops import PublishedCrops
from dataloader.class_crops import ClassCrops
from dataloader.degradation import Degradation, DegradationConfig
from dataloader.entries import find_entries
from dataloader.held_out import held_out
from dataloader.loader import BatchLoader, SampleSource, WithLostClasses, WithNegatives
from dataloader.pairs import ClassSource, LoadedPairs, PairSource
from dataloader.photo_crops import NEGATIVE, POSITIVE, PhotoCrops
from utils.device import training_device
from utils.ranks import Ranks

from .flags import SR, crops_of, given
from .validation import Validation, ValidationSettings

NEGATIVE_SHARE = 0.1
DEFAULT_DATA, DEFAULT_NEGATIVES = "trainset", "trainset_neg"
MIRRORED, UPRIGHT = 2, 1  # symmetries of random crops


@dataclass(frozen=True)
class TrainingData:
    """Where pairs come from, and how many pictures make an epoch."""

    pairs: PairSource | ClassSource | LoadedPairs
    pictures: int


def class_pairs(args: argparse.Namespace, size: int, batch_size: int, ranks: Ranks) -> TrainingData:
    """Pictures and classes for class-to-image: a class for each folder of --data."""
    crops = ClassCrops(args.data, size)
    classes = len(crops.names)
    pairs = _ahead(args, ClassSource(crops.batch, classes), WithLostClasses(crops, classes), batch_size, ranks)
    return TrainingData(pairs, len(crops))


def photo_pairs(args: argparse.Namespace, size: int, batch_size: int, ranks: Ranks) -> TrainingData:
    """Crops of the training photographs and their degradation on the fly."""
    crops = _crops(args, args.data, size, POSITIVE)
    negative_root = args.data_neg or _default_negatives(args)
    negatives = _crops(args, negative_root, size, NEGATIVE) if negative_root else None
    share = 0.0
    if args.stage == SR:
        share = NEGATIVE_SHARE if args.negative_share is None else args.negative_share
    degradation = _degradation(args)
    plain = PairSource(crops.batch, degradation.and_upsample, share, negatives and negatives.batch)
    pairs = _ahead(args, plain, WithNegatives(crops, share, negatives), batch_size, ranks, degradation.config.group)
    return TrainingData(pairs, len(crops))


def _degradation(args: argparse.Namespace) -> Degradation:
    changes = given(args, "group")
    if args.upsample is not None:
        changes["upsample_modes"] = tuple(args.upsample.split(","))
    return Degradation(DegradationConfig.load(light_probability=args.light or 0.0, **changes))


def _default_negatives(args: argparse.Namespace) -> str | None:
    """trainset_neg, where the published layout is used and holds pictures."""
    used = args.stage == SR and args.data == DEFAULT_DATA and os.path.isdir(DEFAULT_NEGATIVES)
    return DEFAULT_NEGATIVES if used and find_entries(DEFAULT_NEGATIVES) else None


def _crops(args: argparse.Namespace, root: str, size: int, label: int) -> PhotoCrops | PublishedCrops:
    if crops_of(args) == "centre":
        enlarge = args.mid_reso if label == POSITIVE else None
        return PublishedCrops(root, size, label=label, enlarge=enlarge, flip=args.hflip is not False)
    if args.hflip is None:
        return PhotoCrops(root, size)
    return PhotoCrops(root, size, symmetries=MIRRORED if args.hflip else UPRIGHT)


def _ahead(args: argparse.Namespace, plain: PairSource | ClassSource, source: SampleSource, batch_size: int,
           ranks: Ranks, group: int = 1) -> PairSource | ClassSource | LoadedPairs:
    """`plain` for one process without --workers, else the same pairs by their numbers in a row that ranks share."""
    if args.workers <= 0 and ranks.world == 1:
        return plain
    loader = BatchLoader(source, batch_size, seed=args.seed, rank=ranks.rank, ranks=ranks.world,
                         workers=max(args.workers, 0), pin_memory=training_device(args.device).type == "cuda")
    return LoadedPairs(loader, plain, group)


def held_out_pairs(args: argparse.Namespace, pairs: PairSource | LoadedPairs, size: int, count: int,
                   precision: str) -> Validation:
    """The pairs that the SR and decoder stages are validated on: of --val_data, or seeded training crops."""
    degradation = Degradation(DegradationConfig.load(light_probability=args.light or 0.0))
    return Validation(held_out(args.val_data, size, count, degradation, pairs.sample),
                      ValidationSettings(precision=precision))
