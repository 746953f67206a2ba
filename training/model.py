"""The model that a training starts from, as the flags of `train.py` describe it."""
from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from models.config import PRESETS, VARSRConfig, published_size
from models.initialization import InitConfig, initialize
from models.varsr import VARSR
from models.vqvae import VQVAE
from models.weights.load import CHECKPOINTS, LooseTensors, load_loose
from models.weights.transfer import Transfer, transfer_weights, with_detail, with_faithful, with_fidelity
from models.weights.unpickle import CheckpointError
from utils.errors import UserError

from .flags import CLASS_DETAIL, DETAIL, FAITHFUL, GENERATING, OF_CLASSES, given

log = logging.getLogger(__name__)

Config = TypeVar("Config")

DEFAULT_PRESETS = {True: "varsr-tiny", False: "varsr-tiny-c2i"}  # by super-resolution
PUBLISHED_TOKENIZER, PUBLISHED_CLASSES = CHECKPOINTS / "VQVAE.pth", CHECKPOINTS / "VARSR_C2I.pth"
# what a tokenizer's file does not know of
FEATURES = ("fidelity_width", "fidelity_blocks", "fidelity_pixels", "faithful_width", "faithful_blocks", "detail_width",
            "detail_blocks", "detail_lr")
BRANCH_WIDTH = 64  # of a branch that no flag describes
LISTED_NAMES = 6  # of each kind in the log
SHAPE_FLAGS = ("preset", "depth", "pn", "saln", "vqvae")  # with one of these, --init is a source of weights alone


def preset_config(name: str, presets: Mapping[str, Config]) -> Config:
    """A preset by name. Raises ValueError with the names there are."""
    if name not in presets:
        raise UserError(f"unknown preset {name!r}: choose one of {', '.join(presets)}")
    return presets[name]


def build_model(args: argparse.Namespace, class_names: tuple[str, ...] = ()) -> VARSR:
    """The model of --init if it is of this stage, else a fresh one of --preset or --depth around a tokenizer, with
    what fits of --init's weights; the log lists what was taken, resized and left out.

    class_names: for class-to-image, what the data hold; a fresh model gets as many classes.
    Raises ValueError for flags that do not fit together, OSError or CheckpointError for files.
    """
    source = args.init or _published_start(args)
    loose = load_loose(source) if source else None
    super_resolution = args.stage not in OF_CLASSES
    goes_on = loose is not None and loose.complete and loose.super_resolution == super_resolution
    if goes_on and not given(args, *SHAPE_FLAGS):
        del loose
        return _continued(args)
    if args.stage in GENERATING:
        kind = "super-resolution" if super_resolution else "class-to-image"
        raise UserError(f"--stage {args.stage} continues from a trained {kind} model: give it with --init")
    config, tokenizer = _fresh_config(args, class_names, source, loose)
    _check_factor(args, config)
    model = VARSR(config)
    initialize(model, InitConfig(**{ours: value for ours, value in (
        ("std", args.ini if args.ini is not None and args.ini >= 0 else None), ("head", args.hd),
        ("modulation", args.aln), ("gate", args.alng)) if value is not None}))
    if loose is not None:
        _report(source, _transferred(model, loose, source))
    if tokenizer is not None:
        model.vqvae.load_state_dict(tokenizer.state_dict(), strict=False)  # all but features of the LR picture
        if args.vqvae and model.vqvae.fidelity is not None:
            model.vqvae.fidelity.silence()  # those of --init were trained with another decoder
    elif loose is None or not any(name.startswith("vqvae.encoder.") for name in loose.tensors):
        raise UserError(f"--stage {args.stage} needs a tokenizer: train one with train_vqvae.py and give it "
                         "with --vqvae")
    return model


def _continued(args: argparse.Namespace) -> VARSR:
    """The whole model of --init."""
    if idle := given(args, "ini", "hd", "aln", "alng"):
        raise UserError(f"--{next(iter(idle))} cannot act: {args.init} is a whole model of this stage and goes on as "
                         "it is, nothing starts fresh")
    model = VARSR.from_pretrained(args.init)
    if args.fidelity_width or args.fidelity_blocks or args.fidelity_pixels:
        vqvae = model.config.vqvae
        width = args.fidelity_width or vqvae.fidelity_width
        if not width:
            raise UserError(f"{args.init} has no LR features yet: give --fidelity_width beside the other --fidelity "
                             "flags")
        model = with_fidelity(model, width, args.fidelity_blocks or vqvae.fidelity_blocks,
                              args.fidelity_pixels or vqvae.fidelity_pixels)
    if args.stage == FAITHFUL:
        vqvae = model.config.vqvae
        model = with_faithful(model, args.faithful_width or vqvae.faithful_width or BRANCH_WIDTH,
                              args.faithful_blocks or vqvae.faithful_blocks)
    if args.stage in (DETAIL, CLASS_DETAIL):
        vqvae = model.config.vqvae
        model = with_detail(model, args.detail_width or vqvae.detail_width or BRANCH_WIDTH,
                            args.detail_blocks or vqvae.detail_blocks)
    _check_factor(args, model.config)
    return model.requires_grad_(True)


def _published_start(args: argparse.Namespace) -> Path | None:
    """With --depth, the published class-to-image weights where they are, as the published command line has it."""
    if not args.depth or args.stage in OF_CLASSES:
        return None
    if PUBLISHED_CLASSES.is_file():
        return PUBLISHED_CLASSES
    log.info("%s is not there: the transformer starts from scratch", PUBLISHED_CLASSES)
    return None


def _fresh_config(args: argparse.Namespace, class_names: tuple[str, ...], source: str | Path | None,
                  loose: LooseTensors | None) -> tuple[VARSRConfig, VQVAE | None]:
    """The configuration of the flags, shaped by the tokenizer's and, where no flag says another size, by the model
    that weights are taken from; and the tokenizer: of --vqvae or that model's folder."""
    super_resolution = args.stage not in OF_CLASSES
    if args.depth:
        config = published_size(args.depth, super_resolution)
    else:
        config = preset_config(args.preset or DEFAULT_PRESETS[super_resolution], PRESETS)
        if not args.preset and loose is not None and loose.config is not None:
            config = _sized_like(config, loose.config)
    if config.is_super_resolution != super_resolution:
        raise UserError(f"preset {args.preset} is not for --stage {args.stage}: choose another --preset")
    file = args.vqvae or (PUBLISHED_TOKENIZER if args.depth else None)
    if file is None and source is not None and Path(source).is_dir():
        file = source
    scales = args.pn or (config.vqvae.scales if args.depth else None)
    tokenizer = None
    if file:
        from models.weights.tokenizer_file import load_tokenizer
        tokenizer = load_tokenizer(file, config.vqvae, scales)
        features = {name: getattr(config.vqvae, name) for name in FEATURES}
        config = dataclasses.replace(config, vqvae=dataclasses.replace(tokenizer.config, **features))
    elif args.pn:
        config = dataclasses.replace(config, vqvae=dataclasses.replace(config.vqvae, scales=args.pn))
    transformer = config.transformer
    if args.saln is not None:
        transformer = dataclasses.replace(transformer, shared_modulation=args.saln)
    if class_names:
        transformer = dataclasses.replace(transformer, class_rows=len(class_names) + 1)
    return dataclasses.replace(config, transformer=transformer, class_names=class_names), tokenizer


def _sized_like(config: VARSRConfig, source: VARSRConfig) -> VARSRConfig:
    """A configuration whose transformer and refiner have another one's size, so that its weights fit."""
    taken = source.transformer
    prefix = config.transformer.prefix
    if prefix is not None:
        prefix = dataclasses.replace(prefix, widths=(*prefix.widths[:-1], taken.width))
    transformer = dataclasses.replace(
        config.transformer, depth=taken.depth, width=taken.width, num_heads=taken.num_heads, ffn_ratio=taken.ffn_ratio,
        shared_modulation=taken.shared_modulation, prefix=prefix)
    return dataclasses.replace(config, transformer=transformer, refiner=source.refiner)


def _check_factor(args: argparse.Namespace, config: VARSRConfig) -> None:
    factor = config.vqvae.downsampling
    if args.patch_size is not None and args.patch_size != factor:
        raise UserError(f"--patch_size {args.patch_size} cannot act: the tokenizer down-samples by {factor}; train "
                         "another with train_vqvae.py --stem and --multipliers")


def _transferred(model: VARSR, loose: LooseTensors, source: str | Path) -> Transfer:
    try:
        return transfer_weights(model, loose)
    except CheckpointError as error:
        raise CheckpointError(f"--init {source}: {error}") from error


def _report(source: str | Path, transfer: Transfer) -> None:
    log.info("from %s: %d tensors taken, %d resized, %d of the model fresh, %d of the file left out", source,
             len(transfer.loaded), len(transfer.resized), len(transfer.fresh), len(transfer.unused))
    for name, how in transfer.resized.items():
        log.info("  resized %s: %s", name, how)
    for kind, names in (("fresh", transfer.fresh), ("left out", transfer.unused)):
        if names:
            log.info("  %s: %s", kind, _summary(names))


def _summary(names: list[str]) -> str:
    """Tensors by the module they belong to, with their numbers."""
    groups: dict[str, int] = {}
    for name in names:
        group = ".".join(name.split(".")[:2])
        groups[group] = groups.get(group, 0) + 1
    listed = [f"{group} ({count})" if count > 1 else group for group, count in groups.items()]
    rest = f" and {len(listed) - LISTED_NAMES} more" if len(listed) > LISTED_NAMES else ""
    return ", ".join(listed[:LISTED_NAMES]) + rest
