"""Last training stage: the decoder learns from the latents that the transformer really generates.

In the tokenizer stage the decoder saw latents of clean pictures only. Here transformer, refiner and encoder are
frozen; the decoder and its fidelity features are trained on generated latents and the LR picture, first on pixels and
structural similarity, then with an adversarial loss (the idea of CodeFormer, stage III, and of StableSR's feature
skips).
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.varsr import VARSR

from .adversary import Adversary, AdversarySettings
from .luminance import smooth_luma
from .metrics import mean_ssim
from .optim import MovingAverage, clipped_step, parameter_groups, set_rates
from .pairs import PairSource
from .precision import autocast
from .progress import timed
from .schedule import Schedule, short_warmup
from .validation import Validation

LEVELS = 255


@dataclass(frozen=True)
class DecoderSettings:
    """Hyper-parameters of the decoder stage."""

    batch_size: int = 8
    fresh: int = 4  # newly generated samples per step; the rest of a batch is replayed from the pool
    pool_size: int = 512
    max_iters: int = 2000
    learning_rate: float = 4e-4
    discriminator_rate: float = 4e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    warmup_iters: int = 20
    ssim_weight: float = 0.0  # of 1 - SSIM of the luma, beside the L1 of the pixels
    adversarial_start: float = 0.4  # share of the iterations that are trained on pixels alone
    adversarial_weight: float = 0.1
    ema: float = 0.998
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only
    seed: int = 0
    val_batch: int = 16


class SamplePool:
    """Ring of generated samples: latents in float32, pictures in 8 bits."""

    def __init__(self, size: int) -> None:
        self.size, self.position = size, 0
        self.latents: Tensor | None = None
        self.pictures: Tensor | None = None

    @staticmethod
    def _pack(target: Tensor, lr: Tensor) -> Tensor:
        return ((torch.stack([target, lr], 1) + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).byte().cpu()

    def add(self, latent: Tensor, target: Tensor, lr: Tensor) -> None:
        """Store samples, the oldest making room. latent: (M, c, N, N); target, lr: (M, 3, S, S) in [-1, 1]."""
        pictures, latent = self._pack(target, lr), latent.float().cpu().clone()
        if self.latents is None or len(self.latents) < self.size:
            self.latents = latent if self.latents is None else torch.cat([self.latents, latent])[:self.size]
            self.pictures = pictures if self.pictures is None else torch.cat([self.pictures, pictures])[:self.size]
            return
        slots = (torch.arange(len(latent)) + self.position) % self.size
        self.latents[slots], self.pictures[slots] = latent, pictures
        self.position = int((self.position + len(latent)) % self.size)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, targets and LR pictures of `count` random samples."""
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        pictures = self.pictures[chosen].float() / (LEVELS / 2) - 1
        return self.latents[chosen], pictures[:, 0], pictures[:, 1]


class DecoderStage:
    """See `loop.Stage`."""

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
        self.adversary = Adversary(
            AdversarySettings(settings.adversarial_weight, round(settings.adversarial_start * settings.max_iters),
                              learning_rate=settings.discriminator_rate, weight_decay=settings.weight_decay,
                              betas=settings.betas, clip=settings.clip, precision=settings.precision,
                              loss_scale=settings.loss_scale), device, conditional=True)
        self.schedule = Schedule("cos", settings.max_iters, short_warmup(settings.warmup_iters, settings.max_iters))
        self.average = MovingAverage(self.trained, settings.ema)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.pool = SamplePool(settings.pool_size)

    @torch.no_grad()
    def _generate(self, count: int) -> float:
        """Put freshly generated samples into the pool; returns the seconds that their data took."""
        pairs, wait = timed(self.pairs.draw, count, self.generator, self.device)
        seed = int(torch.randint(2 ** 31, (1,), generator=self.generator))
        with autocast(self.device, self.settings.precision):
            latent = self.model.generate_latent((pairs.lr + 1) / 2, pairs.labels, seed=seed)
        self.pool.add(latent, pairs.target, pairs.lr)
        return wait

    def train_step(self, iteration: int) -> dict[str, float]:
        """One decoder step and, after the pixel phase, one discriminator step."""
        settings = self.settings
        wait = self._generate(settings.fresh if self.pool.latents is not None else settings.batch_size)
        latent, target, lr = (part.to(self.device) for part in self.pool.draw(settings.batch_size, self.generator))
        rate = self.schedule.rate(iteration)
        set_rates(self.optimizer, settings.learning_rate * rate, settings.weight_decay)
        with autocast(self.device, settings.precision):
            restored = self.model.vqvae.decode_unclamped(latent, lr).float()
        metrics = {"lr": settings.learning_rate * rate, "wait": wait, "samples": float(len(target))}
        loss = own = self._reconstruction_loss(restored, target, metrics)
        adversarial = self.adversary.takes_part(iteration)
        if adversarial:
            last_layer = self.model.vqvae.last_layer.weight
            loss = loss + self.adversary.loss(own, restored, last_layer, lr, metrics)
        self.scaler.scale(loss).backward()
        metrics["grad_norm"] = clipped_step(self.optimizer, self.trained.parameters(), settings.clip, self.scaler)
        if adversarial:
            metrics["discriminator"] = self.adversary.step(restored, target, lr, rate)
        self.average.update(self.trained, iteration)
        return {"loss": loss.item(), **metrics}

    def _reconstruction_loss(self, restored: Tensor, target: Tensor, metrics: dict[str, float]) -> Tensor:
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
        with self._averaged():
            return self.validation.run(self.model, folder / "sheets" / f"{iteration:07d}.png")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with the averaged decoder in place of the one in training."""
        current = {name: value.clone() for name, value in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average.model.state_dict())
        try:
            yield
        finally:
            self.trained.load_state_dict(current)

    def state_dict(self) -> dict[str, Any]:
        """Everything trained, both optimisers, the pool and the generator."""
        return {"trained": self.trained.state_dict(), "average": self.average.model.state_dict(),
                "adversary": self.adversary.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "generator": self.generator.get_state(),
                "pool": (self.pool.latents, self.pool.pictures, self.pool.position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.trained.load_state_dict(state["trained"])
        self.average.model.load_state_dict(state["average"])
        self.adversary.load_state_dict(state["adversary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.pool.latents, self.pool.pictures, self.pool.position = state["pool"]

    def export(self, folder: Path) -> None:
        """The model with the averaged decoder as `model.safetensors` + `config.json`, float32."""
        with self._averaged():
            self.model.save_pretrained(folder)
