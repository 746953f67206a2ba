"""Third training stage: the decoder learns from the latents that the transformer really generates.

In the tokenizer stage the decoder saw latents of clean pictures only. Here transformer, refiner and encoder are
frozen; the decoder and its fidelity features are trained on generated latents and the LR picture, on pixels and
structural similarity (the idea of CodeFormer, stage III, and of StableSR's feature skips). The result is as faithful
as the model can be, and soft: sharpness is the detail stage's business (detail.py).
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloader.pairs import Pairs, PairSource
from evaluation.metrics.full_reference import mean_ssim, smooth_luma
from models.varsr import VARSR
from models.weights.save import save_pretrained
from utils.device import autocast
from utils.ranks import Ranks

from .loop import timed
from .optim import MovingAverage, clipped_step, parameter_groups, set_rates
from .pool import SamplePool, from_bytes, to_bytes
from .schedule import Schedule, short_warmup
from .setup import Setup, generating_parts
from .validation import Validation


@dataclass(frozen=True)
class DecoderSettings:
    """Hyper-parameters of the decoder stage."""

    batch_size: int = 8
    fresh: int = 4  # newly generated samples per step; the rest of a batch is replayed from the pool
    pool_size: int = 512
    max_iters: int = 2000
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    warmup_iters: int = 20
    ssim_weight: float = 0.0  # of 1 - SSIM of the luma, beside the L1 of the pixels
    ema: float = 0.998
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only
    seed: int = 0
    val_batch: int = 16


class DecoderStage:
    """Trains the decoder and its LR features on generated latents (a `loop.Stage`)."""

    best_metric = ("psnr_y", 1.0)

    def __init__(self, model: VARSR, pairs: PairSource, validation: Validation, settings: DecoderSettings,
                 device: torch.device) -> None:
        self.settings, self.device, self.pairs, self.validation = settings, device, pairs, validation
        self.model = model.to(device).channels_last().eval().requires_grad_(False)
        vqvae = self.model.vqvae
        self.trained = torch.nn.ModuleList([vqvae.decoder, vqvae.post_quant])
        if vqvae.fidelity is not None:
            self.trained.append(vqvae.fidelity)
        self.trained.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.trained, settings.weight_decay),
                                           lr=settings.learning_rate, betas=settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=settings.loss_scale,
                                           enabled=settings.precision == "fp16")
        self.schedule = Schedule("cos", settings.max_iters, short_warmup(settings.warmup_iters, settings.max_iters))
        self.average = MovingAverage(self.trained, settings.ema)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.pool = SamplePool(settings.pool_size)

    def _generate(self) -> float:
        """Put freshly generated samples into the pool; returns the seconds that their data took."""
        pairs, latent, wait = generate(self.model, self.pairs, self.generator, self.settings.precision)
        self.pool.add(latent=latent, target=to_bytes(pairs.target), lr=to_bytes(pairs.lr))
        return wait

    def train_step(self, iteration: int) -> dict[str, float]:
        """One decoder step."""
        settings = self.settings
        wait = self._generate()
        while len(self.pool) < min(settings.batch_size, settings.pool_size):
            wait += self._generate()
        drawn = {name: part.to(self.device)
                 for name, part in self.pool.draw(settings.batch_size, self.generator).items()}
        target, lr = from_bytes(drawn["target"]), from_bytes(drawn["lr"])
        rate = self.schedule.rate(iteration)
        set_rates(self.optimizer, settings.learning_rate * rate, settings.weight_decay)
        with autocast(self.device, settings.precision):
            restored = self.model.vqvae.decode_unclamped(drawn["latent"], lr).float()
        metrics = {"lr": settings.learning_rate * rate, "wait": wait, "samples": float(len(target))}
        loss = self._loss(restored, target, metrics)
        self.scaler.scale(loss).backward()
        metrics["grad_norm"] = clipped_step(self.optimizer, self.trained.parameters(), settings.clip, self.scaler)
        self.average.update(self.trained, iteration)
        return {"loss": loss.item(), **metrics}

    def _loss(self, restored: Tensor, target: Tensor, metrics: dict[str, float]) -> Tensor:
        """L1 of the pixels and, with a weight, structural similarity of the luma (Zhao et al. 2017, section III)."""
        loss = F.l1_loss(restored, target)
        metrics["pixel"] = loss.item()
        if self.settings.ssim_weight > 0:
            similarity = mean_ssim(smooth_luma((restored + 1) / 2), smooth_luma((target + 1) / 2))
            metrics["ssim"] = similarity.item()
            loss = loss + self.settings.ssim_weight * (1 - similarity)
        return loss

    @torch.no_grad()
    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Free-running restoration of held-out pairs with the averaged decoder (see `Validation.run`)."""
        with averaged(self.trained, self.average):
            return self.validation.run(self.model, folder / "sheets" / f"{iteration:07d}.png", fidelity=1.0)

    def state_dict(self) -> dict[str, Any]:
        """Everything trained, the optimiser, the pool, the generator and the data position."""
        return {"trained": self.trained.state_dict(), "average": self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                "generator": self.generator.get_state(), "pool": self.pool.state_dict(),
                "data": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.trained.load_state_dict(state["trained"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.pool.load_state_dict(state["pool"])
        self.pairs.load_state_dict(state["data"])

    def export(self, folder: Path) -> None:
        """The model with the averaged decoder as `model.safetensors` + `config.json`, float32."""
        with averaged(self.trained, self.average):
            save_pretrained(self.model, folder)


@torch.no_grad()
def generate(model: VARSR, pairs: PairSource, generator: torch.Generator,
             precision: str) -> tuple[Pairs, Tensor, float]:
    """The next pairs, the latents (M, c, N, N) that the model generates for them, and the seconds that the data took.
    """
    drawn, wait = timed(pairs.draw, model.device)
    seed = int(torch.randint(2 ** 31, (1,), generator=generator))
    with autocast(model.device, precision):
        latent = model.generate_latent((drawn.lr + 1) / 2, drawn.labels, seed=seed)
    return drawn, latent.float(), wait


@contextmanager
def averaged(trained: torch.nn.Module, average: MovingAverage) -> Iterator[None]:
    """Modules with their averaged weights in place of those in training."""
    current = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.load_state_dict(average.model.state_dict())
    try:
        yield
    finally:
        trained.load_state_dict(current)


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises as `generating_parts`."""
    parts = generating_parts(args, device, ranks, DecoderSettings, {"ssim_weight": "ssim_weight"})
    return Setup(parts.settings, parts.model, lambda: DecoderStage(*parts, device))
