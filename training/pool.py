"""Training on what the model itself generates: a pool of samples, and what the stages that draw from it share.

Generating costs more than a step of training on what was generated, so each sample serves many times and is slowly
replaced by new ones.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataloader.pairs import Pairs, PairSource
from models.branches import Branch
from models.generation import GivenTokens
from models.varsr import VARSR
from models.weights.save import save_pretrained
from utils.device import autocast
from utils.errors import UserError

from .loop import timed
from .optim import MovingAverage, clipped_step, gradient_scaler, hybrid_optimizers, restore_optimizer, set_rates
from .schedule import Schedule, short_warmup
from .validation import Validation

LEVELS = 255
CPU = torch.device("cpu")


class SamplePool:
    """A ring of samples, each a row of every named tensor. It holds them as they are given, on one device."""

    def __init__(self, size: int, device: torch.device = CPU) -> None:
        self.size, self.device, self.added = size, device, 0
        self.fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.added, self.size)

    def add(self, **samples: Tensor) -> None:
        """Store samples, tensors (M, ...) of the same M, the oldest making room."""
        count = len(next(iter(samples.values())))
        slots = (torch.arange(count, device=self.device) + self.added) % self.size
        for name, value in samples.items():
            if name not in self.fields:
                self.fields[name] = torch.empty(self.size, *value.shape[1:], dtype=value.dtype,
                                                device=self.device)
            self.fields[name][slots] = value.detach().to(self.device)
        self.added += count

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` random samples, by name."""
        chosen = torch.randint(len(self), (count,), generator=generator).to(self.device, non_blocking=True)
        return {name: value[chosen] for name, value in self.fields.items()}

    def state_dict(self) -> dict[str, Any]:
        """All samples, on the CPU, and how many were ever added."""
        return {"added": self.added, "fields": {name: value[:len(self)].cpu() for name, value in self.fields.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the samples of a state in place of those held, in its order, so that the next one lands where it would
        have. Raises ValueError for the state of a pool of another size."""
        held = len(next(iter(state["fields"].values()), ()))
        if held != min(state["added"], self.size):
            raise UserError(f"the saved pool holds {held} samples, this one {self.size}: resume with the settings of "
                             "the run, or start over with --resume no")
        self.added, self.fields = 0, {}
        if held:
            self.add(**state["fields"])
        self.added = state["added"]


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as 8-bit levels."""
    return ((pictures + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).byte()


def from_bytes(levels: Tensor) -> Tensor:
    """8-bit levels as float32 pictures in [-1, 1]."""
    return levels.float() / (LEVELS / 2) - 1


def right_codes(model: VARSR, pictures: Tensor, count: int | None = None) -> GivenTokens:
    """The codes of pictures (B, 3, S, S) in [-1, 1], which count in the first `count` of them, by default in all."""
    codes = model.vqvae.quantizer.encode(model.vqvae.encode(pictures)).codes
    chosen = torch.arange(len(pictures), device=pictures.device) < (len(pictures) if count is None else count)
    return GivenTokens(codes, [chosen[:, None].expand_as(each) for each in codes])


@dataclass(frozen=True)
class PooledSettings:
    """Hyper-parameters that the stages share."""

    batch_size: int = 8
    fresh: int = 4  # samples that are generated anew at a time
    renew_every: int = 4  # iterations between `fresh` new samples
    pool_size: int = 512
    pool_on_device: bool = False  # whether its samples lie on the training device, or on the CPU
    max_iters: int = 2000
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    warmup_iters: int = 20
    ema: float = 0.998
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only
    seed: int = 0
    val_batch: int = 16

    def __post_init__(self) -> None:
        """Raises ValueError for values that no training can have."""
        for name in ("batch_size", "pool_size", "fresh", "renew_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


class PooledStage:
    """A `loop.Stage` that trains a part of an otherwise frozen model on generated samples.

    Keeps a moving average of the part, which is what it validates and exports. `fidelity`: what is validated.
    """

    fidelity: float

    def __init__(self, model: VARSR, trained: nn.Module, pairs: PairSource, validation: Validation,
                 settings: PooledSettings, device: torch.device) -> None:
        """trained: the part, of `model`."""
        self.settings, self.device, self.pairs, self.validation = settings, device, pairs, validation
        self.model = model.to(device).channels_last().eval().requires_grad_(False)
        self.trained = trained.requires_grad_(True)
        self.optimizers = hybrid_optimizers(self.trained, self.hidden_weights(), settings.learning_rate,
                                            settings.weight_decay, settings.betas)
        self.scaler = gradient_scaler(device, settings.precision, settings.loss_scale)
        self.schedule = Schedule("cos", settings.max_iters, short_warmup(settings.warmup_iters, settings.max_iters))
        self.average = MovingAverage(self.trained, settings.ema)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.pool = SamplePool(settings.pool_size, device if settings.pool_on_device else CPU)

    def hidden_weights(self) -> list[nn.Parameter]:
        """Weights that Muon trains: those between features of a branch (`models/branches.py`)."""
        return self.trained.hidden_weights() if isinstance(self.trained, Branch) else []

    @torch.no_grad()
    def generated(self) -> tuple[Pairs, Tensor, float]:
        """The next pairs, the latents (M, c, N, N) that the model generates for them, and the seconds that the data
        took."""
        pairs, wait = self.next_pairs()
        with autocast(self.device, self.settings.precision):
            latent = self.model.generate_latent((pairs.lr + 1) / 2, pairs.labels, seed=self.next_seed(),
                                                given=self.given(pairs))
        return pairs, latent.float(), wait

    def given(self, pairs: Pairs) -> GivenTokens | None:
        """Codes that are not generated."""

    def renew(self, iteration: int) -> float:
        """Fill the pool at first, and renew it slowly from then on; returns the seconds that the data took."""
        if not len(self.pool):
            while len(self.pool) < self.settings.pool_size:
                self._add_samples()
        elif iteration % self.settings.renew_every == 0:
            return self._add_samples()
        return 0.0

    def _add_samples(self) -> float:
        """Put new samples into the pool; returns the seconds that their data took."""
        raise NotImplementedError

    def next_pairs(self) -> tuple[Pairs, float]:
        """The next pairs, and the seconds that they took."""
        return timed(self.pairs.draw, self.device)

    def next_seed(self) -> int:
        """Of the next samples that are generated."""
        return int(torch.randint(2 ** 31, (1,), generator=self.generator))

    def drawn(self) -> dict[str, Tensor]:
        """A batch of the pool on the device, by name."""
        return {name: part.to(self.device)
                for name, part in self.pool.draw(self.settings.batch_size, self.generator).items()}

    def set_rate(self, place: float) -> float:
        """Set the learning rate of a place on the run's course; its share of the peak."""
        rate = self.schedule.rate(place)
        for optimizer in self.optimizers:
            set_rates(optimizer, self.settings.learning_rate * rate, self.settings.weight_decay)
        return rate

    def step(self, loss: Tensor, iteration: int, metrics: dict[str, float | Tensor]) -> None:
        """Backward, one step of the part, its average."""
        self.scaler.scale(loss).backward()
        metrics["grad_norm"] = clipped_step(self.optimizers, self.trained.parameters(), self.settings.clip,
                                            self.scaler)
        self.average.update(self.trained, iteration)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averaged weights in place of those in training."""
        current = {name: value.clone() for name, value in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average.model.state_dict())
        try:
            yield
        finally:
            self.trained.load_state_dict(current)

    @torch.no_grad()
    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Free-running restoration of held-out pairs with the averaged part (see `Validation.run`)."""
        with self.averaged():
            return self.validation.run(self.model, folder / "sheets" / f"{iteration:07d}.png", **self.viewing())

    def viewing(self) -> dict[str, Any]:
        """What `Validation.run` is to look at, and with."""
        return {"fidelity": self.fidelity}

    def state_dict(self) -> dict[str, Any]:
        """The part, its average, optimisers and generator, the pool, the data position."""
        return {"trained": self.trained.state_dict(), "average": self.average.model.state_dict(),
                "optimizers": [each.state_dict() for each in self.optimizers], "scaler": self.scaler.state_dict(),
                "generator": self.generator.get_state(), "pool": self.pool.state_dict(),
                "data": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.trained.load_state_dict(state["trained"])
        self.average.model.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            restore_optimizer(optimizer, saved)
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.pool.load_state_dict(state["pool"])
        self.pairs.load_state_dict(state["data"])

    def export(self, folder: Path) -> None:
        """The model with the averaged part as `model.safetensors` + `config.json`, float32."""
        with self.averaged():
            save_pretrained(self.model, folder)
