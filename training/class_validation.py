"""Validation of a class-to-image model while it trains: losses on held-out crops and on ones of the training, and
pictures of every class with and without guidance.

Few pictures a class can be learnt by heart: then the losses on held-out crops rise while those on the training's fall.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dataloader.pairs import Pairs
from models.varsr import VARSR
from pictures.sheets import write_grid
from utils.device import autocast

from .log import spared
from .validation import scale_metrics

VALIDATION_SEED = 12345
CLASS_CROPS = 160  # held-out ones, of all classes
SHEET_CLASSES, SHEET_SEEDS = 16, (0, 1000)
TRAINING_PREFIX = "training_"  # of the measures on training crops

RefinerDraws = Callable[[int, int], tuple[Tensor, Tensor]]  # first sample and count to timesteps and noise


@dataclass(frozen=True)
class ClassValidation:
    """Crops and their classes, and how they are measured.

    held_out, training: crops that training does not see, and some that it does (None where there are no others).
    draws: the refiner's timesteps and noise, the same in every validation.
    """

    held_out: Pairs
    training: Pairs | None
    draws: RefinerDraws
    precision: str = "bf16"
    batch_size: int = 16

    @torch.no_grad()
    def run(self, model: VARSR, sheet: Path) -> dict[str, float]:
        """Teacher-forced losses and shares of right codes, over all and by scale, on held-out crops and ("training_")
        on the others. The sheet has a column a class, and rows with the model's guidance above rows without any."""
        values = self._measure(model, self.held_out)
        if self.training is not None:
            known = self._measure(model, self.training)
            values |= {TRAINING_PREFIX + name: known[name] for name in ("cross_entropy", "accuracy")}
        self._draw(model, sheet)
        return values

    def _measure(self, model: VARSR, pairs: Pairs) -> dict[str, float]:
        """Means over the crops."""
        totals: dict[str, float] = {}
        for part in torch.arange(len(pairs.target)).split(self.batch_size):
            times, noise = self.draws(int(part[0]), len(part))
            with autocast(model.device, self.precision):
                losses = model(pairs.target[part], None, pairs.labels[part], refiner_times=times, refiner_noise=noise)
            found = {"cross_entropy": losses.cross_entropy, "accuracy": losses.accuracy, "refiner": losses.refiner,
                     **scale_metrics(model, losses.token_losses, losses.hits)}
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(part) / len(pairs.target)
        return totals

    def _draw(self, model: VARSR, sheet: Path) -> None:
        labels = torch.arange(model.config.num_classes, device=model.device)[:SHEET_CLASSES]
        guided = model.config.generation
        with autocast(model.device, self.precision):
            rows = [model.generate(labels=labels, seed=seed, options=options)
                    for options in (guided, dataclasses.replace(guided, cfg=0.0)) for seed in SHEET_SEEDS]
        with spared("the sheet", sheet.parent):
            write_grid(sheet, rows)
