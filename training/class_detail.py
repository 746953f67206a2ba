"""Last training stage of a class-to-image model: a detail branch learns to paint what codes alone leave out.

Nothing but codes and the refiner's residual comes out of the transformer, and an LR picture that could help does not
exist here. So the branch is trained, all else frozen, on what the decoder makes of the right codes and the residual
that the refiner really draws for them, to give pictures that look like the crops they are of. Discriminators see the
decoded picture beside, where those of super-resolution see the LR one.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloader.pairs import BatchLoader, ClassSource, Pairs
from evaluation.class_quality import ClassFeatures, frechet_distance
from models.generation import GivenTokens
from models.varsr import VARSR
from pictures.sheets import write_grid
from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .class_validation import CLASS_CROPS, SHEET_CLASSES, SHEET_SEEDS, VALIDATION_SEED
from .detail import Decoded, DetailSettings, DetailStage
from .judged import JUDGED_FIELDS
from .model import build_model
from .perceptual import Perceptual, find_perceptual
from .setup import Setup, class_crops, generating_settings, loader, tune
from .validation import mean_distance, measure


@dataclass(frozen=True)
class ClassDetailSettings(DetailSettings):
    """Hyper-parameters of the stage."""

    max_iters: int = 2000
    chroma_weight: float = 1.0
    perceptual_weight: float = 0.0
    map_weight: float = 1.0
    adversarial_weight: float = 0.05
    ema: float = 0.998
    val_batch: int = CLASS_CROPS


def latents_of(model: VARSR, pairs: Pairs, seed: int) -> Tensor:
    """Latents (B, c, N, N) float32 of the right codes of pictures and the residual that the refiner draws for them."""
    codes = model.vqvae.quantizer.encode(model.vqvae.encode(pairs.target)).codes
    given = GivenTokens(codes, [torch.ones_like(each, dtype=torch.bool) for each in codes])
    return model.generate_latent(labels=pairs.labels, given=given, seed=seed).float()


class DecodedClasses:
    """Held-out crops of classes, whose latents are decoded again and again while what decodes them is trained."""

    def __init__(self, pairs: Pairs, features: ClassFeatures, precision: str, batch_size: int) -> None:
        self.pairs, self.features, self.precision, self.batch_size = pairs, features, precision, batch_size
        self.photographs = (pairs.target + 1) / 2
        self.expected = self.features.of_all(self.photographs.split(batch_size))
        self.latents: Tensor | None = None

    @torch.no_grad()
    def run(self, model: VARSR, sheet: Path, perceptual: Perceptual | None = None) -> dict[str, float]:
        """Of the crops and what is decoded of them: `measure`, the perceptual distance, and the Fréchet distance of
        features (`evaluation/class_quality.py`). The sheet: crops above what is decoded of them, and below pictures of
        every class."""
        target = self.photographs
        with autocast(model.device, self.precision):
            if self.latents is None:
                parts = torch.arange(len(target)).split(self.batch_size)
                self.latents = torch.cat([latents_of(model, Pairs(self.pairs.target[part], None,
                                                                  self.pairs.labels[part]), int(part[0]))
                                          for part in parts])
            pictures = torch.cat([(model.vqvae.decode(part).float() + 1) / 2
                                  for part in self.latents.split(self.batch_size)])
            labels = torch.arange(model.config.num_classes, device=model.device)[:SHEET_CLASSES]
            drawn = [model.generate(labels=labels, seed=seed) for seed in SHEET_SEEDS]
        write_grid(sheet, [target[:len(labels)], pictures[:len(labels)], *drawn])
        decoded = self.features.of_all(pictures.split(self.batch_size))
        values = {**measure(pictures.cpu(), target.cpu()), "distance": frechet_distance(decoded, self.expected)}
        if perceptual is not None:
            values["perceptual"] = mean_distance(pictures, target, perceptual, self.batch_size, model.device)
        return values


class ClassDetailStage(DetailStage):
    """Trains the detail branch of a class-to-image model."""

    best_metric = ("distance", -1.0)

    def __init__(self, model: VARSR, pairs: ClassSource, validation: DecodedClasses, settings: ClassDetailSettings,
                 perceptual: Perceptual, device: torch.device) -> None:
        """Raises as the base class."""
        super().__init__(model, pairs, validation, settings, perceptual, device)

    def viewing(self) -> dict[str, Any]:
        """Pictures are validated with all of the detail."""
        return {"perceptual": self.perceptual}

    def _decoded(self) -> Decoded:
        """See the base class: here the decoded picture is in the LR one's place."""
        pairs, wait = self.next_pairs()
        with autocast(self.device, self.settings.precision):
            latent = latents_of(self.model, pairs, self.next_seed())
            decoded = self.model.vqvae.decode_unclamped(latent).float()
        return Decoded(latent, decoded, pairs.target, decoded, wait)


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises ValueError, OSError or CheckpointError for flags and files."""
    perceptual = find_perceptual(device)
    if perceptual.features is None:
        raise UserError(f"--stage {args.stage} needs a perceptual network: {perceptual.description}")
    model = build_model(args)
    crops, held_out = class_crops(args, model.config)
    settings = generating_settings(args, device, ranks, ClassDetailSettings, JUDGED_FIELDS, len(crops))
    tune(args, model, device)
    pairs = ClassSource(loader(args, crops, settings.fresh, ranks))
    expected = ClassSource(BatchLoader(held_out, settings.val_batch, seed=VALIDATION_SEED)).draw(device)
    validation = DecodedClasses(expected, ClassFeatures(device), settings.precision, settings.batch_size)
    return Setup(settings, model, lambda: ClassDetailStage(model, pairs, validation, settings, perceptual, device))
