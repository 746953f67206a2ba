"""Last training stage of a class-to-image model: its decoder learns to paint what codes alone leave out.

A tokenizer's codes keep little of fine texture, and nothing but they and the refiner's residual comes out of the
transformer; an LR picture that could help does not exist here. So the decoder is trained, all else frozen, on the
latents that the refiner really makes of the right codes, to give pictures that look like the crops they are of.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataloader.pairs import BatchLoader, ClassSource, Pairs
from evaluation.class_quality import ClassFeatures, frechet_distance
from models.generation import GivenTokens
from models.varsr import VARSR
from pictures.sheets import write_grid
from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .adversary import Seen
from .class_validation import CLASS_CROPS, SHEET_CLASSES, SHEET_SEEDS, VALIDATION_SEED
from .judged import JUDGED_FIELDS, JudgedSettings, JudgedStage
from .model import build_model
from .perceptual import Perceptual, find_perceptual
from .pool import from_bytes, to_bytes
from .setup import Setup, class_crops, generating_settings, loader, tune
from .validation import mean_distance, measure


@dataclass(frozen=True)
class ClassDecoderSettings(JudgedSettings):
    """Hyper-parameters of the stage."""

    max_iters: int = 2000
    learning_rate: float = 2e-4
    chroma_weight: float = 1.0
    perceptual_weight: float = 0.0
    map_weight: float = 1.0
    adversarial_weight: float = 0.1
    ema: float = 0.998
    val_batch: int = CLASS_CROPS


def latents_of(model: VARSR, pairs: Pairs, seed: int) -> Tensor:
    """Latents (B, c, N, N) float32 of the right codes of pictures and the residual that the refiner draws for them."""
    codes = model.vqvae.quantizer.encode(model.vqvae.encode(pairs.target)).codes
    given = GivenTokens(codes, [torch.ones_like(each, dtype=torch.bool) for each in codes])
    return model.generate_latent(labels=pairs.labels, given=given, seed=seed).float()


class DecodedClasses:
    """Held-out crops of classes, whose latents are decoded again and again while the decoder is trained."""

    def __init__(self, pairs: Pairs, features: ClassFeatures, precision: str, batch_size: int) -> None:
        self.pairs, self.features, self.precision, self.batch_size = pairs, features, precision, batch_size
        self.expected = self.features.of_all(((pairs.target + 1) / 2).split(batch_size))
        self.latents: Tensor | None = None

    @torch.no_grad()
    def run(self, model: VARSR, sheet: Path, perceptual: Perceptual | None = None) -> dict[str, float]:
        """Of the crops and what is decoded of them: `measure`, the perceptual distance, and the Fréchet distance of
        features (`evaluation/class_quality.py`). The sheet: crops above what is decoded of them, and below pictures of
        every class."""
        target = (self.pairs.target + 1) / 2
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


class ClassDecoderStage(JudgedStage):
    """Trains the decoder of a class-to-image model."""

    best_metric = ("distance", -1.0)
    conditional = False

    def __init__(self, model: VARSR, pairs: ClassSource, validation: DecodedClasses, settings: ClassDecoderSettings,
                 perceptual: Perceptual, device: torch.device) -> None:
        """Raises ValueError where there are no feature maps."""
        trained = nn.ModuleList([model.vqvae.decoder, model.vqvae.post_quant])
        super().__init__(model, trained, pairs, validation, settings, perceptual, (validation.pairs.target + 1) / 2,
                         device)

    def viewing(self) -> dict[str, Any]:
        """Without LR pictures there is no fidelity to choose."""
        return {"perceptual": self.perceptual}

    @torch.no_grad()
    def _add_samples(self) -> float:
        """See the base class."""
        pairs, wait = self.next_pairs()
        with autocast(self.device, self.settings.precision):
            latent = latents_of(self.model, pairs, self.next_seed())
        self.pool.add(latent=latent.half(), target=to_bytes(pairs.target))
        return wait

    def _restore(self, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Seen, None]:
        """See the base class."""
        decoded = self.model.vqvae.decode_unclamped(drawn["latent"].float()).float()
        with torch.no_grad():
            real = self.perceptual.look(from_bytes(drawn["target"]))
        return decoded, real, None


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises ValueError, OSError or CheckpointError for flags and files."""
    perceptual = find_perceptual(device)
    if perceptual.features is None:
        raise UserError(f"--stage {args.stage} needs a perceptual network: {perceptual.description}")
    model = build_model(args)
    crops, held_out = class_crops(args, model.config)
    settings = generating_settings(args, device, ranks, ClassDecoderSettings, JUDGED_FIELDS, len(crops))
    tune(args, model, device)
    pairs = ClassSource(loader(args, crops, settings.fresh, ranks))
    expected = ClassSource(BatchLoader(held_out, settings.val_batch, seed=VALIDATION_SEED)).draw(device)
    validation = DecodedClasses(expected, ClassFeatures(device), settings.precision, settings.batch_size)
    return Setup(settings, model, lambda: ClassDecoderStage(model, pairs, validation, settings, perceptual, device))
