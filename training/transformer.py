"""Training stage of the transformer and the refiner, the tokenizer frozen (VARSR, section 3.5; VAR, section 3.3)."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dataloader.pairs import BatchLoader, ClassSource, PairSource, WithLostClasses
from dataloader.positions import Stream, generator_at
from models.config import LossConfig, VARSRConfig
from models.varsr import VARSR
from models.weights.save import save_pretrained
from utils.device import autocast
from utils.ranks import Ranks

from .flags import CLASSES, MUON
from .loop import numbers, timed
from .model import build_model
from .optim import MovingAverage, clipped_step, gradient_scaler, hybrid_optimizers, set_rates
from .parallel import Parallel, ShardedAverage
from .schedule import Schedule
from .setup import (
    Setup,
    batch_size,
    class_crops,
    held_out_pairs,
    iterations,
    loader,
    photo_pairs,
    precision,
    setting_fields,
    tune,
)
from .validation import Validation, scale_metrics

if TYPE_CHECKING:
    from .class_validation import ClassValidation

ZERO_WARMUP = 0.02  # what --wp=0 means in the published command line
# Flags and the fields of the settings they set.
FIELDS = {"ac": "accumulation", "afuse": "fused", "ls": "label_smoothing", "wp0": "warmup_start", "wpe": "final",
          "sche": "schedule", "error_rate": "error_rate", "scale_balance": "scale_balance"}
# Parameters without weight decay beside biases and 1-d ones (spec of the SR stage).
NO_DECAY = ("class_embedding", "start_position", "level_embedding", "log_scale", "modulation_offset", "refiner.")


def refiner_draws(config: VARSRConfig, seed: int, first: int, count: int,
                  device: torch.device) -> tuple[Tensor, Tensor]:
    """The random part of the refiner's loss, decided by the seed and the numbers of the samples alone: timesteps
    (repeats·B·N²,) and normal noise (repeats·B·N², c) of the samples first..first + count - 1.

    So a run resumes without saved generators, and two ranks with batches of b draw what one rank draws with 2b.
    A GPU draws all at once, which a host could not keep up with: there other batches draw other numbers.
    In the order that `DiffusionRefiner.loss` wants: the tokens of all samples, repeated as a block. On the device.
    """
    repeats, tokens, channels = config.refiner.repeats, config.vqvae.side ** 2, config.vqvae.latent_channels
    steps = config.refiner.train_steps
    if device.type == "cuda":
        generator = torch.Generator(device).manual_seed(generator_at(seed, Stream.REFINER, first).initial_seed())
        shape = (repeats * count * tokens,)
        return (torch.randint(steps, shape, generator=generator, device=device),
                torch.randn(*shape, channels, generator=generator, device=device))
    times, noise = [], []
    for position in range(first, first + count):
        generator = generator_at(seed, Stream.REFINER, position)
        times.append(torch.randint(steps, (repeats, tokens), generator=generator))
        noise.append(torch.randn(repeats, tokens, channels, generator=generator))
    return torch.stack(times, 1).flatten().to(device), torch.stack(noise, 1).flatten(0, 2).to(device)


@dataclass(frozen=True)
class TransformerSettings:
    """Hyper-parameters of the SR and class-to-image stages; the defaults are the paper's, except for the length."""

    batch_size: int = 4  # of one rank and one part of an accumulated step
    accumulation: int = 1  # parts of a step
    max_iters: int = 20000
    learning_rate: float = 5e-5
    weight_decay: float = 0.05
    final_weight_decay: float | None = None  # half a cosine leads there; None: it stays
    muon: bool = False  # in AdamW's place for the matrices of the blocks
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
    """Trains transformer and refiner (a `loop.Stage`); a moving average of the weights is validated and exported."""

    best_metric = ("psnr_y", 1.0)  # of `report`, and whether more (1) or less (-1) is better

    def __init__(self, model: VARSR, pairs: PairSource | ClassSource, validation: Validation | ClassValidation,
                 settings: TransformerSettings, device: torch.device, ranks: Ranks | None = None,
                 shard: bool = False) -> None:
        """ranks, shard: see `Parallel`; with several ranks, each must be given pairs of its own."""
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
        self.optimizers = hybrid_optimizers(
            self.model, self.model.transformer.hidden_weights() if settings.muon else [], settings.learning_rate,
            settings.weight_decay, settings.betas, NO_DECAY, settings.fused)
        self.parameters = [p for each in self.optimizers for group in each.param_groups for p in group["params"]]
        self.schedule = Schedule(settings.schedule, settings.max_iters,
                                 round(settings.warmup_share * settings.max_iters),
                                 settings.warmup_start, settings.final)
        self.scaler = gradient_scaler(device, settings.precision, settings.loss_scale)
        self.generator = torch.Generator().manual_seed(settings.seed)

    def train_step(self, iteration: int, place: float | None = None) -> dict[str, float]:
        """One teacher-forced step on fresh pairs, in as many parts as are accumulated. place: see `loop.Stage`; by
        default that of a run of iterations."""
        settings, place = self.settings, iteration if place is None else place
        rate = settings.learning_rate * self.schedule.rate(place)
        for optimizer in self.optimizers:
            set_rates(optimizer, rate, self._decay(place))
        parts = [self._accumulate(iteration * settings.accumulation + i, i + 1 == settings.accumulation)
                 for i in range(settings.accumulation)]
        norm = clipped_step(self.optimizers, self.parameters, settings.clip, self.scaler)
        parts = [numbers(part) for part in parts]
        self.average.update(self.model, iteration)
        metrics = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        metrics |= {name: sum(part[name] for part in parts) for name in ("wait", "samples")}
        return {**metrics, "grad_norm": norm, "lr": rate}

    def _accumulate(self, part: int, last: bool) -> dict[str, float | Tensor]:
        """Add the gradients of one batch; `part` counts the batches of this rank from the run's first one on."""
        settings = self.settings
        pairs, wait = timed(self.pairs.draw, self.device)
        count = len(pairs.target)
        first = (part * self.ranks.world + self.ranks.rank) * settings.batch_size
        times, noise = refiner_draws(self.model.config, settings.seed, first, count, self.device)
        with self.parallel.synchronized(last):
            with autocast(self.device, settings.precision):
                losses = self.parallel.forward(
                    pairs.target, pairs.lr, pairs.labels, settings=settings.losses, refiner_times=times,
                    refiner_noise=noise)
            self.scaler.scale(losses.total / settings.accumulation).backward()
        self.pairs.draw_ahead(self.device)
        return {"loss": losses.total.detach(), "cross_entropy": losses.cross_entropy.detach(),
                "refiner": losses.refiner.detach(), "accuracy": losses.accuracy.detach(), "wait": wait,
                "samples": float(count), **scale_metrics(self.model, losses.token_losses, losses.hits)}

    def _decay(self, place: float) -> float:
        final = self.settings.final_weight_decay
        if final is None:
            return self.settings.weight_decay
        return self.schedule.weight_decay(place, self.settings.weight_decay, final)

    @torch.no_grad()
    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Validate; the sheet shows restored held-out pairs, or pictures of classes."""
        path = folder / "sheets" / f"{iteration:07d}.png"
        model = self.average.whole(self.device)
        if not self.ranks.is_main:
            return {}
        return self.validation.run(model, path)

    def state_dict(self) -> dict[str, Any]:
        """Model, average, optimiser, scaler, generator and data position; every rank must call it."""
        return {**self.parallel.state_dict(self.optimizers), "average": self.average.state_dict(),
                "scaler": self.scaler.state_dict(), "generator": self.generator.get_state(),
                "data": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.parallel.load_state_dict(self.optimizers, state)
        self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.pairs.load_state_dict(state["data"])

    def export(self, folder: Path) -> None:
        """The averaged model as `model.safetensors` + `config.json`, float32."""
        model = self.average.whole(self.device)
        if self.ranks.is_main:
            save_pretrained(model, folder)


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """Super-resolution or class-to-image from the flags. Raises ValueError, OSError or CheckpointError for flags and
    files."""
    batch = batch_size(args, ranks, TransformerSettings.batch_size)
    accumulation = args.ac or 1
    model, pairs, pictures, validate = (_classes if args.stage == CLASSES else _photographs)(args, batch, ranks)
    changes = {**setting_fields(args, FIELDS), "batch_size": batch, "precision": precision(args, device),
               "seed": args.seed, "max_iters": iterations(args, pictures, batch * accumulation * ranks.world),
               "muon": args.opt == MUON}
    if args.tblr is not None:
        changes["learning_rate"] = args.tblr * accumulation
    if args.twde:
        changes["final_weight_decay"] = args.twde
    if args.wp is not None:
        changes["warmup_share"] = args.wp or ZERO_WARMUP
    settings = TransformerSettings(**changes)
    tune(args, model, device)
    validation = validate(settings, device)

    def make() -> TransformerStage:
        stage = TransformerStage(model, pairs, validation, settings, device, ranks, args.fsdp)
        if ranks.world > 1:  # from here on, what is drawn in a step (stochastic depth, wrong codes) is each rank's own
            torch.manual_seed(args.seed + ranks.rank)
        return stage
    return Setup(settings, model, make)


class _Parts(NamedTuple):
    """What differs between the two kinds of the stage."""

    model: VARSR
    pairs: PairSource | ClassSource
    pictures: int
    validate: Callable[[TransformerSettings, torch.device], Validation | ClassValidation]


def _photographs(args: argparse.Namespace, batch: int, ranks: Ranks) -> _Parts:
    model = build_model(args)
    size = model.config.image_size
    data = photo_pairs(args, size, batch, ranks)

    def validate(settings: TransformerSettings, device: torch.device) -> Validation:
        return held_out_pairs(args, data.crops, size, settings.val_batch, settings.precision)
    return _Parts(model, data.pairs, data.pictures, validate)


def _classes(args: argparse.Namespace, batch: int, ranks: Ranks) -> _Parts:
    """A class for each folder of --data."""
    from dataloader.class_crops import class_folders

    from .class_validation import CLASS_CROPS, VALIDATION_SEED, ClassValidation
    names = tuple(folder.name for folder in class_folders(args.data))
    model = build_model(args, names)
    crops, held_out = class_crops(args, model.config)
    pairs = ClassSource(loader(args, WithLostClasses(crops, len(names)), batch, ranks))

    def validate(settings: TransformerSettings, device: torch.device) -> ClassValidation:
        drawn, known = (ClassSource(BatchLoader(source, CLASS_CROPS, seed=VALIDATION_SEED)).draw(device)
                        for source in (held_out, crops))
        return ClassValidation(drawn, known if args.val_data else None,
                               partial(refiner_draws, model.config, settings.seed, device=device), settings.precision,
                               settings.val_batch)
    return _Parts(model, pairs, len(crops), validate)
