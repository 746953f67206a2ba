"""Training stage of the transformer and the refiner, the tokenizer frozen (VARSR, section 3.5; VAR, section 3.3)."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.varsr import VARSR

from .grid import write_grid
from .loaded_pairs import LoadedPairs
from .optim import MovingAverage, clipped_step, parameter_groups, set_rates
from .pairs import ClassSource, Pairs, PairSource
from .precision import autocast
from .progress import timed
from .schedule import Schedule
from .validation import Validation

# Parameters without weight decay beside biases and 1-d ones (spec of the SR stage).
NO_DECAY = ("class_embedding", "start_position", "level_embedding", "log_scale", "modulation_offset", "refiner.")
SHEET_CLASSES, SHEET_SEEDS = 12, (0, 1000)


@dataclass(frozen=True)
class TransformerSettings:
    """Hyper-parameters of the SR stage; the defaults are the paper's, except for the length."""

    batch_size: int = 4
    max_iters: int = 20000
    learning_rate: float = 5e-5
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 2.0
    schedule: str = "lin0"
    warmup_share: float = 0.1
    warmup_start: float = 0.005
    final: float = 0.01
    error_rate: float = 0.0  # see MultiScaleQuantizer.encode; the paper trains without errors
    scale_balance: float = 0.0  # see VARSR.forward
    ema: float = 0.999
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only
    seed: int = 0
    val_batch: int = 16


class TransformerStage:
    """See `loop.Stage`. Keeps a moving average of the weights, which is what it validates and exports."""

    def __init__(self, model: VARSR, pairs: PairSource | ClassSource | LoadedPairs, validation: Validation | Pairs,
                 settings: TransformerSettings, device: torch.device) -> None:
        """`validation`: held-out pairs; class-to-image: held-out pictures and their classes."""
        self.settings, self.device, self.pairs, self.validation = settings, device, pairs, validation
        self.model = model.to(device).channels_last().train()
        self.model.vqvae.eval().requires_grad_(False)
        groups = parameter_groups(model, settings.weight_decay, NO_DECAY)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
        self.schedule = Schedule(settings.schedule, settings.max_iters,
                                 round(settings.warmup_share * settings.max_iters),
                                 settings.warmup_start, settings.final)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=settings.loss_scale,
                                           enabled=settings.precision == "fp16")
        self.average = MovingAverage(model, settings.ema)
        self.generator = torch.Generator().manual_seed(settings.seed)

    def train_step(self, iteration: int) -> dict[str, float]:
        """One teacher-forced step on a fresh batch of pairs."""
        settings = self.settings
        pairs, wait = timed(self.pairs.draw, settings.batch_size, self.generator, self.device)
        set_rates(self.optimizer, settings.learning_rate * self.schedule.rate(iteration), settings.weight_decay)
        with autocast(self.device, settings.precision):
            losses = self.model(pairs.target, pairs.lr, pairs.labels, error_rate=settings.error_rate,
                                scale_balance=settings.scale_balance)
        self.scaler.scale(losses.total).backward()
        norm = clipped_step(self.optimizer, self.parameters, settings.clip, self.scaler)
        self.average.update(self.model, iteration)
        return {"loss": losses.total.item(), "cross_entropy": losses.cross_entropy.item(),
                "refiner": losses.refiner.item(), "accuracy": losses.accuracy.item(), "grad_norm": norm,
                "lr": self.optimizer.param_groups[0]["lr"], "wait": wait, "samples": float(len(pairs.target))}

    @torch.no_grad()
    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Restoration of held-out pairs, or pictures of the first classes, as a sheet, and what can be measured."""
        path = folder / "sheets" / f"{iteration:07d}.png"
        if isinstance(self.validation, Validation):
            return self.validation.run(self.average.model, path)
        return self._report_classes(path)

    def _report_classes(self, path: Path) -> dict[str, float]:
        """Two pictures of each class; teacher-forced losses on held-out crops."""
        labels = torch.arange(self.model.config.num_classes, device=self.device)[:SHEET_CLASSES]
        with autocast(self.device, self.settings.precision):
            rows = [self.average.model.generate(labels=labels, seed=seed) for seed in SHEET_SEEDS]
            losses = self.average.model(self.validation.target, None, self.validation.labels)
        write_grid(path, rows)
        return {"cross_entropy": losses.cross_entropy.item(), "accuracy": losses.accuracy.item(),
                "refiner": losses.refiner.item()}

    def state_dict(self) -> dict[str, Any]:
        """Model, average, optimiser, scaler, generator and data position."""
        return {"model": self.model.state_dict(), "average": self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                "generator": self.generator.get_state(), "data": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.pairs.load_state_dict(state.get("data", {}))  # older states come from sources without a position

    def export(self, folder: Path) -> None:
        """The averaged model as `model.safetensors` + `config.json`, float32."""
        self.average.model.save_pretrained(folder)
