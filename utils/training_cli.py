"""What the training scripts share: building model and data from flags, the progress bar, the exit code."""
from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from dataloader.class_crops import ClassCrops
from dataloader.dataset import PhotoCrops
from dataloader.degradation import Degradation, DegradationConfig
from models.checkpoint import require_complete
from models.config import PRESETS
from models.initialization import InitConfig, initialize
from models.varsr import VARSR

from .allocator import keep_freed_memory
from .loop import LoopConfig, Stage, TrainingDiverged, TrainLoop
from .pairs import ClassSource, PairSource

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
    if not Path(args.vqvae).is_file():
        raise FileNotFoundError(f"tokenizer {args.vqvae} not found: train_vqvae.py writes vqvae.safetensors")
    config = preset_config(args.preset, PRESETS)
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


def build_class_to_image(args: argparse.Namespace) -> tuple[VARSR, ClassSource]:
    """The class-to-image model and its data: a class for each folder of --data."""
    if args.init:
        model = build_model(args)
        crops = ClassCrops(args.data, model.config.image_size)
    else:
        crops = ClassCrops(args.data, preset_config(args.preset, PRESETS).image_size)
        model = build_model(args, crops.names)
    if model.config.num_classes != len(crops.names):
        raise ValueError(f"{args.data} holds {len(crops.names)} classes, the model of --init has "
                         f"{model.config.num_classes}")
    return model, ClassSource(crops.batch, len(crops.names))


def training_pairs(args: argparse.Namespace, size: int) -> PairSource:
    """Crops of the training photographs and their degradation on the fly."""
    crops = PhotoCrops(args.data, crop_size=size)
    negatives = PhotoCrops(args.data_neg, crop_size=size).batch if args.data_neg else None
    config = DegradationConfig.load(light_probability=args.light, upsample_modes=tuple(args.upsample.split(",")))
    share = args.negative_share if args.stage == "sr" else 0.0
    return PairSource(crops.batch, Degradation(config).and_upsample, share, negatives)


def run_stage(stage: Stage, config: LoopConfig, settings: dict[str, Any]) -> int:
    """Train a stage with a progress bar; the exit code is 0 when finished, 1 when it diverged or was stopped."""
    keep_freed_memory()
    loop = TrainLoop(stage, config, settings)
    with tqdm(total=config.max_iters, initial=loop.start, unit="it", dynamic_ncols=True, mininterval=5.0) as bar:
        def advance(metrics: dict[str, float]) -> None:
            bar.set_postfix({"loss": f"{metrics['loss']:.4f}"}, refresh=False)
            bar.update()
        try:
            finished = loop.run(advance)
        except TrainingDiverged as error:
            log.error("%s", error)
            return 1
    return 0 if finished else 1
