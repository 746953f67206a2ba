"""Last training stage of a class-to-image model: a detail branch learns to paint what codes alone leave out.

Nothing but codes and the refiner's residual comes out of the transformer, and an LR picture that could help does not
exist here. So the branch is trained, all else frozen, on two kinds of pictures: what the decoder makes of the right
codes of crops and the residual that the refiner really draws for them, to give pictures that look like these crops; and
what it makes of codes that the transformer draws itself, which discriminators shall take for crops as well.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloader.pairs import BatchLoader, ClassSource, Pairs
from evaluation.class_quality import ClassFeatures, frechet_distance
from models.varsr import VARSR
from pictures.sheets import write_grid
from utils.device import autocast
from utils.ranks import Ranks

from .adversary import Seen
from .class_validation import CLASS_CROPS, SHEET_CLASSES, SHEET_SEEDS, VALIDATION_SEED
from .judged import JUDGED_FIELDS, JudgedSettings, JudgedStage
from .log import spared
from .model import build_model
from .perceptual import Perceptual, needed_perceptual
from .pool import from_bytes, right_codes, to_bytes
from .setup import Setup, class_crops, generating_settings, loader, tune
from .validation import mean_distance, measure

KINDS = ("right", "drawn")  # of codes


@dataclass(frozen=True)
class ClassDetailSettings(JudgedSettings):
    """Hyper-parameters of the stage. A batch has as many pictures of codes that the transformer draws besides."""

    max_iters: int = 2000
    learning_rate: float = 4e-4
    pool_size: int = 400
    pixel_weight: float = 0.5
    chroma_weight: float = 1.0
    perceptual_weight: float = 0.0
    map_weight: float = 1.0
    adversarial_weight: float = 0.02  # 0.1 gives grain
    ema: float = 0.998
    val_batch: int = CLASS_CROPS


def latents_of(model: VARSR, pairs: Pairs, seed: int) -> Tensor:
    """Latents (B, c, N, N) float32 of the right codes of pictures and the residual that the refiner draws for them."""
    return model.generate_latent(labels=pairs.labels, given=right_codes(model, pairs.target), seed=seed).float()


class DecodedClasses:
    """Held-out crops of classes: latents of their right codes, and latents of their classes that the model draws, both
    made once and decoded again and again while what decodes them is trained."""

    def __init__(self, pairs: Pairs, features: ClassFeatures, precision: str, batch_size: int) -> None:
        self.pairs, self.features, self.precision, self.batch_size = pairs, features, precision, batch_size
        self.photographs = (pairs.target + 1) / 2
        self.expected = self.features.of_all(self.photographs.split(batch_size))
        self.latents: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def run(self, model: VARSR, sheet: Path, perceptual: Perceptual | None = None) -> dict[str, float]:
        """Of the crops and what is decoded of their codes: `measure` and the perceptual distance; and the Fréchet
        distance of features (`evaluation/class_quality.py`) of that and of pictures that the model draws. The sheet:
        crops above what is decoded of them, and below pictures of every class."""
        target = self.photographs
        with autocast(model.device, self.precision):
            if self.latents is None:
                self.latents = self._latents(model)
            decoded, drawn = (torch.cat([(model.vqvae.decode(part).float() + 1) / 2
                                         for part in latents.split(self.batch_size)]) for latents in self.latents)
            labels = torch.arange(model.config.num_classes, device=model.device)[:SHEET_CLASSES]
            shown = [model.generate(labels=labels, seed=seed) for seed in SHEET_SEEDS]
        with spared("the sheet", sheet.parent):
            write_grid(sheet, [target[:len(labels)], decoded[:len(labels)], *shown])
        values = {**measure(decoded.cpu(), target.cpu()), "distance": self._distance(decoded),
                  "drawn_distance": self._distance(drawn)}
        if perceptual is not None:
            values["perceptual"] = mean_distance(decoded, target, perceptual, self.batch_size, model.device)
        return values

    def _latents(self, model: VARSR) -> tuple[Tensor, Tensor]:
        """Those of right codes, and those that are drawn."""
        right, drawn = [], []
        for part in torch.arange(len(self.photographs)).split(self.batch_size):
            pairs = Pairs(self.pairs.target[part], None, self.pairs.labels[part])
            right.append(latents_of(model, pairs, int(part[0])))
            drawn.append(model.generate_latent(labels=pairs.labels, seed=int(part[0])))
        return torch.cat(right), torch.cat(drawn)

    def _distance(self, pictures: Tensor) -> float:
        return frechet_distance(self.features.of_all(pictures.split(self.batch_size)), self.expected)


class ClassDetailStage(JudgedStage):
    """Trains the detail branch of a class-to-image model."""

    best_metric = ("drawn_distance", -1.0)
    conditional = False

    def viewing(self) -> dict[str, Any]:
        """Pictures are validated with all of the detail."""
        return {"perceptual": self.perceptual}

    @torch.no_grad()
    def _add_samples(self) -> float:
        """See the base class. A sample of the pool is of a crop, and of a picture of its class that the model draws."""
        pairs, wait = self.next_pairs()
        sample = {"target": to_bytes(pairs.target)}
        with autocast(self.device, self.settings.precision):
            latents = (latents_of(self.model, pairs, self.next_seed()),
                       self.model.generate_latent(labels=pairs.labels, seed=self.next_seed()).float())
            for name, latent in zip(KINDS, latents, strict=True):
                sample |= {f"{name}_latent": latent.half(),
                           f"{name}_decoded": to_bytes(self.model.vqvae.decode_unclamped(latent).float())}
        self.pool.add(**sample)
        return wait

    def _restore(self, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Seen, None]:
        """See the base class: pictures of right codes, then of drawn ones."""
        latent = torch.cat([drawn[f"{name}_latent"].float() for name in KINDS])
        decoded = torch.cat([from_bytes(drawn[f"{name}_decoded"]) for name in KINDS])
        with torch.no_grad():
            real = self.perceptual.look(from_bytes(drawn["target"]))
        return decoded + self.trained(self.trained.picture_cells(decoded, None), latent).float(), real, None


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises ValueError, OSError or CheckpointError for flags and files."""
    perceptual = needed_perceptual(args.stage, device, args.perceptual_weight)
    model = build_model(args)
    crops, held_out = class_crops(args, model.config)
    settings = generating_settings(args, device, ranks, ClassDetailSettings, JUDGED_FIELDS, len(crops))
    tune(args, model, device)
    pairs = ClassSource(loader(args, crops, settings.fresh, ranks))
    expected = ClassSource(BatchLoader(held_out, settings.val_batch, seed=VALIDATION_SEED)).draw(device)
    validation = DecodedClasses(expected, ClassFeatures(device), settings.precision, settings.batch_size)
    return Setup(settings, model, lambda: ClassDetailStage(model, pairs, validation, settings, perceptual, device))
