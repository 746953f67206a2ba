"""What `train_vqvae.py` makes of its flags: the tokenizer, its settings, its data."""
from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import torch
from torch import Tensor

from dataloader.held_out import SEED, held_out_crops
from dataloader.pairs import CropSource, SampleSource, drawn
from dataloader.photo_crops import PhotoCrops
from models.config import PRESETS, VQVAEConfig
from models.vqvae import VQVAE
from models.weights.tokenizer_file import load_tokenizer
from utils.device import training_precision
from utils.errors import UserError
from utils.ranks import Ranks

from .flags import BOTH, PATCH
from .model import preset_config
from .perceptual import Perceptual, find_perceptual
from .schedule import short_warmup
from .setup import length, loader, resident
from .tokenizer import TokenizerSettings, TokenizerStage

log = logging.getLogger(__name__)

FIT_PICTURES = 512  # crops whose blocks a linear path is fitted to

# Flags that say how a tokenizer is built; a file of --init says all of it but the scales.
SHAPE_FLAGS = ("stem", "multipliers", "base_width", "res_blocks", "latent_channels", "vocab_size", "linear_path")
# Flags that are fields of TokenizerSettings under the same name.
SETTING_FLAGS = ("batch_size", "commitment", "continuous_share", "scale_dropout", "max_dropped",
                 "perceptual_weight", "adversarial_weight", "adversarial_start", "revive_every", "ema", "seed", "clip",
                 "val_batch")


def build_stage(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> TokenizerStage:
    """All that the flags describe, ready to train. Raises ValueError or OSError for flags or files that do not fit."""
    perceptual = find_perceptual(device)
    log.info("perceptual loss: %s", perceptual.description if args.perceptual_weight else "none, by its weight")
    settings, model = tokenizer_settings(args, device, perceptual), build_tokenizer(args)
    crops = resident(args, PhotoCrops(args.data, crop_size=model.config.image_size))
    if model.config.linear_path and not args.init:
        generator = torch.Generator().manual_seed(args.seed)
        model.fit(drawn(crops, FIT_PICTURES, args.seed) * 2 - 1, generator)
        log.info("started from the principal components of %d crops", FIT_PICTURES)
    validation = validation_crops(args, crops, model.config.image_size)
    source = CropSource(loader(args, crops, args.batch_size, ranks))
    return TokenizerStage(model, source, validation, settings, device, perceptual, ranks)


def build_tokenizer(args: argparse.Namespace) -> VQVAE:
    """The tokenizer that training starts from. Raises ValueError or OSError for flags or a file that do not fit."""
    given = [name for name in SHAPE_FLAGS if getattr(args, name) is not None]
    if args.init:
        if given:
            raise UserError(f"--{given[0]} cannot act with --init: {args.init} says how the tokenizer is built")
        model = load_tokenizer(args.init, preset_config(args.preset, PRESETS).vqvae, args.scales)
        log.info("started from %s: %s", args.init, describe(model.config))
        return model
    changes = {name: getattr(args, name) for name in given}
    if args.scales is not None:
        changes["scales"] = args.scales
    changes |= {"fidelity_width": 0, "fidelity_pixels": 0}  # they belong to the decoder stage; presets have no branches
    config = dataclasses.replace(preset_config(args.preset, PRESETS).vqvae, **changes)
    log.info("from scratch: %s", describe(config))
    return VQVAE(config)


def describe(config: VQVAEConfig) -> str:
    """A configuration in one line."""
    return (f"{config.image_size}x{config.image_size} pixels, factor {config.downsampling}, scales "
            f"{'_'.join(map(str, config.scales))}, {config.vocab_size} codes of {config.latent_channels} channels, "
            f"width {config.base_width}")


def tokenizer_settings(args: argparse.Namespace, device: torch.device, perceptual: Perceptual) -> TokenizerSettings:
    """Hyper-parameters from the flags. Raises ValueError."""
    adversary = args.adversary or (BOTH if perceptual.features else PATCH)
    if adversary != PATCH and perceptual.features is None:
        raise UserError(f"--adversary {adversary} needs a perceptual network: {perceptual.description}")
    max_iters, warmup = length(args, TokenizerSettings.max_iters), args.warmup_iters
    if warmup is None:
        warmup = short_warmup(TokenizerSettings.warmup_iters, max_iters)
    return TokenizerSettings(adversary=adversary, max_iters=max_iters, learning_rate=args.lr, warmup_iters=warmup,
                             precision=training_precision(args.precision, device),
                             **{name: getattr(args, name) for name in SETTING_FLAGS})


def validation_crops(args: argparse.Namespace, crops: SampleSource, size: int) -> Tensor:
    """Crops (M, 3, S, S) in [0, 1]: of --val_data, else seeded ones of the training pictures."""
    if args.val_data:
        return held_out_crops(Path(args.val_data), size, args.val_batch)
    log.info("no --val_data: validation crops are of the training pictures, so not quite unseen")
    return drawn(crops, args.val_batch, SEED)
