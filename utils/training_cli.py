"""What the training scripts share: building model and data from flags, the progress bar, the exit code."""
from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from dataloader.class_crops import ClassCrops
from dataloader.dataset import NEGATIVE, POSITIVE, PhotoCrops
from dataloader.degradation import Degradation, DegradationConfig
from dataloader.loader import BatchLoader, SampleSource, WithLostClasses, WithNegatives
from dataloader.published_crops import PublishedCrops
from models.checkpoint import require_complete
from models.config import PRESETS
from models.initialization import InitConfig, initialize
from models.tokenizer_file import tokenizer_config
from models.varsr import VARSR

from .allocator import keep_freed_memory
from .held_out import held_out
from .loaded_pairs import LoadedPairs
from .loop import LoopConfig, Stage, TrainingDiverged, TrainLoop
from .pairs import ClassSource, PairSource
from .progress import bar_text
from .training_log import WandBSettings, open_log
from .validation import Validation, ValidationSettings

log = logging.getLogger(__name__)
Config = TypeVar("Config")


def training_device(name: str) -> torch.device:
    """"auto" is the first GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def preset_config(name: str, presets: Mapping[str, Config]) -> Config:
    """A preset by name. Raises ValueError with the names there are."""
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(presets)}")
    return presets[name]


def build_model(args: argparse.Namespace, class_names: tuple[str, ...] = ()) -> VARSR:
    """The model that `train.py` starts from: a finished one (--init), or a preset around a tokenizer (--vqvae).

    class_names: for class-to-image, what the data hold; the preset gets as many classes.
    Raises ValueError when neither is given, FileNotFoundError for a missing file.
    """
    if args.init:
        model = VARSR.from_pretrained(args.init)
        require_complete(model.config, args.init)
        return model.requires_grad_(True)
    if args.stage == "decoder":
        raise ValueError("--stage decoder continues from a trained model: give its folder with --init")
    if not args.vqvae:
        raise ValueError(f"--stage {args.stage} needs a tokenizer: train one with train_vqvae.py and give it "
                         "with --vqvae")
    config = preset_config(args.preset, PRESETS)
    tokenizer = tokenizer_config(args.vqvae)
    if tokenizer is not None:  # the file says how it is built; the decoder's LR features are the preset's
        features = {"fidelity_width": config.vqvae.fidelity_width, "fidelity_blocks": config.vqvae.fidelity_blocks}
        config = dataclasses.replace(config, vqvae=dataclasses.replace(tokenizer, **features))
    if config.is_super_resolution != (args.stage == "sr"):
        raise ValueError(f"preset {args.preset} is not for --stage {args.stage}: choose another --preset")
    if class_names:
        transformer = dataclasses.replace(config.transformer, class_rows=len(class_names) + 1)
        config = dataclasses.replace(config, transformer=transformer, class_names=class_names)
    model = VARSR(config)
    initialize(model, InitConfig(head=args.hd, modulation=args.aln, gate=args.alng))
    missing, unexpected = model.vqvae.load_state_dict(load_file(args.vqvae), strict=False)
    missing = [name for name in missing if not name.startswith("fidelity.")]  # trained in the decoder stage
    if missing or unexpected:
        raise ValueError(f"{args.vqvae} is no tokenizer of preset {args.preset}: "
                         f"missing {missing[:3]}, unexpected {unexpected[:3]}")
    return model


def build_class_to_image(args: argparse.Namespace) -> tuple[VARSR, ClassSource | LoadedPairs]:
    """The class-to-image model and its data: a class for each folder of --data."""
    if args.crops != "random":
        raise ValueError(f"--crops {args.crops} is not there for --stage c2i: leave it out")
    if args.init:
        model = build_model(args)
        crops = ClassCrops(args.data, model.config.image_size)
    else:
        crops = ClassCrops(args.data, preset_config(args.preset, PRESETS).image_size)
        model = build_model(args, crops.names)
    if model.config.num_classes != len(crops.names):
        raise ValueError(f"{args.data} holds {len(crops.names)} classes, the model of --init has "
                         f"{model.config.num_classes}")
    classes = len(crops.names)
    return model, _with_workers(args, ClassSource(crops.batch, classes), WithLostClasses(crops, classes))


def training_pairs(args: argparse.Namespace, size: int) -> PairSource | LoadedPairs:
    """Crops of the training photographs and their degradation on the fly."""
    crops = _crops(args, args.data, size, POSITIVE)
    negatives = _crops(args, args.data_neg, size, NEGATIVE) if args.data_neg else None
    config = DegradationConfig.load(light_probability=args.light, upsample_modes=tuple(args.upsample.split(",")))
    share = args.negative_share if args.stage == "sr" else 0.0
    plain = PairSource(crops.batch, Degradation(config).and_upsample, share, negatives and negatives.batch)
    return _with_workers(args, plain, WithNegatives(crops, share, negatives), config.group)


def _crops(args: argparse.Namespace, root: str, size: int, label: int) -> PhotoCrops | PublishedCrops:
    if args.crops == "centre":
        return PublishedCrops(root, size, label=label)
    return PhotoCrops(root, size)


def _with_workers(args: argparse.Namespace, plain: PairSource | ClassSource, source: SampleSource,
                  group: int = 1) -> PairSource | ClassSource | LoadedPairs:
    """`plain` without --workers, else the same pairs drawn ahead. Raises ValueError where that cannot be."""
    if not args.workers:
        return plain
    if args.stage == "decoder":
        raise ValueError("--workers cannot act with --stage decoder, which replays most of its samples: leave it out")
    loader = BatchLoader(source, args.batch_size, seed=args.seed, workers=args.workers,
                         pin_memory=training_device(args.device).type == "cuda")
    return LoadedPairs(loader, plain, group)


def held_out_pairs(args: argparse.Namespace, pairs: PairSource, size: int, count: int, precision: str) -> Validation:
    """The pairs that the SR and decoder stages are validated on: of --val_data, or seeded training crops."""
    degradation = Degradation(DegradationConfig.load(light_probability=args.light))
    return Validation(held_out(args.val_data, size, count, degradation, pairs.sample),
                      ValidationSettings(precision=precision))


def run_stage(stage: Stage, config: LoopConfig, settings: dict[str, Any], wandb: WandBSettings | None = None) -> int:
    """Train a stage with a progress bar; the exit code is 0 when finished, 1 when it diverged or was stopped."""
    keep_freed_memory()
    try:
        loop = TrainLoop(stage, config, settings, open_log(config.output, wandb))
    except ValueError as error:  # a log that cannot be had, a state of another run
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    with tqdm(total=config.max_iters, initial=loop.start, unit="it", dynamic_ncols=True, mininterval=5.0) as bar:
        def advance(metrics: dict[str, float]) -> None:
            bar.set_postfix(bar_text(metrics), refresh=False)
            bar.update()
        try:
            finished = loop.run(advance)
        except TrainingDiverged as error:
            log.error("%s", error)
            return 1
    return 0 if finished else 1
