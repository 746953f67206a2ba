"""Training stage of the transformer and the refiner, the tokenizer frozen (VARSR, section 3.5; VAR, section 3.3)."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloader.pairs import ClassSource, LoadedPairs, Pairs, PairSource
from dataloader.positions import Stream, generator_at
from models.config import LossConfig, VARSRConfig
from models.varsr import VARSR
from models.weights.save import save_pretrained
from pictures.sheets import write_grid
from utils.device import autocast
from utils.ranks import Ranks

from .loop import timed
from .optim import MovingAverage, Schedule, clipped_step, parameter_groups, set_rates
from .parallel import Parallel, ShardedAverage
from .validation import Validation

# Parameters without weight decay beside biases and 1-d ones (spec of the SR stage).
NO_DECAY = ("class_embedding", "start_position", "level_embedding", "log_scale", "modulation_offset", "refiner.")
SHEET_CLASSES, SHEET_SEEDS = 12, (0, 1000)


def refiner_draws(config: VARSRConfig, seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Timesteps (repeats·B·N²,) and normal noise (repeats·B·N², c) of the samples first..first + count - 1.

    In the order that `DiffusionRefiner.loss` wants: the tokens of all samples, repeated as a block. On the CPU.
    """
    repeats, tokens, channels = config.refiner.repeats, config.vqvae.side ** 2, config.vqvae.latent_channels
    times, noise = [], []
    for position in range(first, first + count):
        generator = generator_at(seed, Stream.REFINER, position)
        times.append(torch.randint(config.refiner.train_steps, (repeats, tokens), generator=generator))
        noise.append(torch.randn(repeats, tokens, channels, generator=generator))
    return torch.stack(times, 1).flatten(), torch.stack(noise, 1).flatten(0, 2)


@dataclass(frozen=True)
class TransformerSettings:
    """Hyper-parameters of the SR and class-to-image stages; the defaults are the paper's, except for the length."""

    batch_size: int = 4  # of one rank and one part of an accumulated step
    accumulation: int = 1  # parts of a step
    max_iters: int = 20000
    learning_rate: float = 5e-5
    weight_decay: float = 0.05
    final_weight_decay: float | None = None  # half a cosine leads there; None: it stays
    fused: bool = True  # one kernel for AdamW
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 2.0  # 0: gradients are not clipped
    label_smoothing: float = 0.0
    schedule: str = "lin0"
    warmup_share: float = 0.1
    warmup_start: float = 0.005
    final: float = 0.01
    error_rate: float = 0.0  # see LossConfig; the paper trains without errors
    scale_balance: float = 0.0
    ema: float = 0.999
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only
    seed: int = 0
    val_batch: int = 16

    @property
    def losses(self) -> LossConfig:
        """What of them concerns the losses."""
        return LossConfig(self.error_rate, self.scale_balance, self.label_smoothing)


class TransformerStage:
    """See `loop.Stage`. Keeps a moving average of the weights, which is what it validates and exports."""

    best_metric = ("psnr_y", 1.0)  # of `report`, and whether more (1) or less (-1) is better

    def __init__(self, model: VARSR, pairs: PairSource | ClassSource | LoadedPairs, validation: Validation | Pairs,
                 settings: TransformerSettings, device: torch.device, ranks: Ranks | None = None,
                 shard: bool = False) -> None:
        """`validation`: held-out pairs; class-to-image: held-out pictures and their classes. ranks, shard: see
        `Parallel`; with several ranks, each must be given pairs of its own (`LoadedPairs`)."""
        self.settings, self.device, self.pairs, self.validation = settings, device, pairs, validation
        self.ranks = ranks or Ranks()
        if not isinstance(validation, Validation):
            self.best_metric = ("cross_entropy", -1.0)
        model.channels_last().train()
        model.vqvae.eval().requires_grad_(False)
        average = None if shard else MovingAverage(model.to(device), settings.ema)
        self.parallel = Parallel(model, device, self.ranks, shard)
        self.model = self.parallel.model
        self.average = average or ShardedAverage(self.model, settings.ema)
        groups = parameter_groups(self.model, settings.weight_decay, NO_DECAY)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas,
                                           fused=settings.fused)
        self.schedule = Schedule(settings.schedule, settings.max_iters,
                                 round(settings.warmup_share * settings.max_iters),
                                 settings.warmup_start, settings.final)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=settings.loss_scale,
                                           enabled=settings.precision == "fp16")
        self.generator = torch.Generator().manual_seed(settings.seed)

    def train_step(self, iteration: int) -> dict[str, float]:
        """One teacher-forced step on fresh pairs, in as many parts as are accumulated."""
        settings = self.settings
        set_rates(self.optimizer, settings.learning_rate * self.schedule.rate(iteration), self._decay(iteration))
        parts = [self._accumulate(iteration * settings.accumulation + i, i + 1 == settings.accumulation)
                 for i in range(settings.accumulation)]
        norm = clipped_step(self.optimizer, self.parameters, settings.clip, self.scaler)
        self.average.update(self.model, iteration)
        metrics = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        metrics |= {name: sum(part[name] for part in parts) for name in ("wait", "samples")}
        return {**metrics, "grad_norm": norm, "lr": self.optimizer.param_groups[0]["lr"]}

    def _accumulate(self, part: int, last: bool) -> dict[str, float]:
        """Add the gradients of one batch; `part` counts the batches of this rank from the run's first one on."""
        settings = self.settings
        pairs, wait = timed(self.pairs.draw, settings.batch_size, self.generator, self.device)
        count = len(pairs.target)
        first = (part * self.ranks.world + self.ranks.rank) * settings.batch_size
        times, noise = refiner_draws(self.model.config, settings.seed, first, count)
        with self.parallel.synchronized(last):
            with autocast(self.device, settings.precision):
                losses = self.parallel.forward(
                    pairs.target, pairs.lr, pairs.labels, settings=settings.losses,
                    refiner_times=times.to(self.device, non_blocking=True),
                    refiner_noise=noise.to(self.device, non_blocking=True))
            self.scaler.scale(losses.total / settings.accumulation).backward()
        return {"loss": losses.total.item(), "cross_entropy": losses.cross_entropy.item(),
                "refiner": losses.refiner.item(), "accuracy": losses.accuracy.item(), "wait": wait,
                "samples": float(count)}

    def _decay(self, iteration: int) -> float:
        final = self.settings.final_weight_decay
        if final is None:
            return self.settings.weight_decay
        return self.schedule.weight_decay(iteration, self.settings.weight_decay, final)

    @torch.no_grad()
    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Restoration of held-out pairs, or pictures of the first classes, as a sheet, and what can be measured."""
        path = folder / "sheets" / f"{iteration:07d}.png"
        model = self.average.whole(self.device)
        if not self.ranks.is_main:
            return {}
        if isinstance(self.validation, Validation):
            return self.validation.run(model, path)
        return self._report_classes(model, path)

    def _report_classes(self, model: VARSR, path: Path) -> dict[str, float]:
        """Two pictures of each class; teacher-forced losses on held-out crops."""
        labels = torch.arange(self.model.config.num_classes, device=self.device)[:SHEET_CLASSES]
        with autocast(self.device, self.settings.precision):
            rows = [model.generate(labels=labels, seed=seed) for seed in SHEET_SEEDS]
            losses = model(self.validation.target, None, self.validation.labels, *self._validation_draws())
        write_grid(path, rows)
        return {"cross_entropy": losses.cross_entropy.item(), "accuracy": losses.accuracy.item(),
                "refiner": losses.refiner.item()}

    def _validation_draws(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The refiner's timesteps and noise, the same in every validation."""
        times, noise = refiner_draws(self.model.config, self.settings.seed, 0, len(self.validation.target))
        return times.to(self.device), noise.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Model, average, optimiser, scaler, generator and data position; every rank must call it."""
        return {**self.parallel.state_dict(self.optimizer), "average": self.average.state_dict(),
                "scaler": self.scaler.state_dict(), "generator": self.generator.get_state(),
                "data": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.parallel.load_state_dict(self.optimizer, state)
        self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.pairs.load_state_dict(state["data"])

    def export(self, folder: Path) -> None:
        """The averaged model as `model.safetensors` + `config.json`, float32."""
        model = self.average.whole(self.device)
        if self.ranks.is_main:
            save_pretrained(model, folder)
