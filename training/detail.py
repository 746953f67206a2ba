"""Last training stage: the detail branch learns to make faithful pictures look like photographs.

All of the model but the branch (models/lr_features.py) is frozen. Its pictures and the feature maps of what does not
change, HR and LR picture, are computed once for each sample of a pool. Losses: pixels, a perceptual distance, feature
maps, and discriminators that see the LR picture too.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloader.pairs import PairSource
from evaluation.metrics.full_reference import smooth_chroma
from models.varsr import VARSR
from models.weights.save import save_pretrained
from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .adversary import Adversary, AdversarySettings, Discriminators, Seen
from .decoder import averaged, generate
from .flags import BOTH
from .optim import MovingAverage, clipped_step, parameter_groups, set_rates
from .perceptual import Perceptual, find_perceptual, map_distance
from .pool import SamplePool, from_bytes, to_bytes
from .schedule import Schedule, short_warmup
from .setup import Setup, generating_parts
from .validation import Validation

# Flags that are fields of the settings under the same name.
FIELDS = {name: name for name in ("pixel_weight", "chroma_weight", "perceptual_weight", "map_weight", "adversary",
                                  "adversarial_weight", "pool_size", "renew_every")}

HR, LR = "hr", "lr"  # whose maps the pool holds


@dataclass(frozen=True)
class DetailSettings:
    """Hyper-parameters of the detail stage."""

    batch_size: int = 8
    pool_size: int = 2400
    fresh: int = 4  # samples that are generated anew at a time ...
    renew_every: int = 4  # ... each so many iterations
    max_iters: int = 10000
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    discriminator_rate: float = 4e-4
    discriminator_betas: tuple[float, float] = (0.5, 0.99)
    clip: float = 1.0
    warmup_iters: int = 50
    pixel_weight: float = 1.0  # of L1
    chroma_weight: float = 4.0  # of L1 of Cb and Cr besides: invented detail is light and dark, in colour it is noise
    perceptual_weight: float = 0.1  # of the judge's distance, where there is one (`Perceptual`)
    perceptual_side: int = 64  # of the part of the pictures that it sees: it is the dearest of all networks here
    map_weight: float = 0.3  # of the distance of feature maps
    adversary: str = BOTH
    adversarial_weight: float = 0.018
    patch_width: int = 24  # of the patch discriminator
    ema: float = 0.999
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only
    seed: int = 0
    val_batch: int = 24

    def __post_init__(self) -> None:
        """Raises ValueError for values that no training can have."""
        for name in ("pixel_weight", "chroma_weight", "perceptual_weight", "map_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("batch_size", "pool_size", "fresh", "renew_every", "perceptual_side"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


class DetailStage:
    """Trains the detail branch, and discriminators beside it (a `loop.Stage`)."""

    best_metric = ("st_lpips", -1.0)  # without its weights there is no best one, just the last

    def __init__(self, model: VARSR, pairs: PairSource, validation: Validation, settings: DetailSettings,
                 perceptual: Perceptual, device: torch.device) -> None:
        """Raises ValueError for a model without a detail branch, or where there are no feature maps."""
        if model.vqvae.detail is None:
            raise UserError("the model has no detail branch to train")
        if perceptual.features is None:
            raise UserError(f"the detail stage needs a perceptual network: {perceptual.description}")
        self.settings, self.device, self.pairs, self.validation = settings, device, pairs, validation
        self.model = model.to(device).channels_last().eval().requires_grad_(False)
        self.branch = self.model.vqvae.detail.requires_grad_(True)
        self.perceptual = perceptual
        perceptual.calibrate(validation.pairs.target.to(device) * 2 - 1)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.branch, settings.weight_decay),
                                           lr=settings.learning_rate, betas=settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=settings.loss_scale,
                                           enabled=settings.precision == "fp16")
        self.adversary = Adversary(
            AdversarySettings(settings.adversarial_weight, start=0, learning_rate=settings.discriminator_rate,
                              betas=settings.discriminator_betas, clip=settings.clip, precision=settings.precision,
                              loss_scale=settings.loss_scale),
            Discriminators(settings.adversary, perceptual.channels, True, settings.patch_width), device)
        self.schedule = Schedule("cos", settings.max_iters, short_warmup(settings.warmup_iters, settings.max_iters))
        self.average = MovingAverage(self.branch, settings.ema)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.pool = SamplePool(settings.pool_size)

    @torch.no_grad()
    def _add_samples(self) -> float:
        """Put new samples into the pool; returns the seconds that their data took."""
        pairs, latent, wait = generate(self.model, self.pairs, self.generator, self.settings.precision)
        with autocast(self.device, self.settings.precision):
            decoded = self.model.vqvae.decode_unclamped(latent, pairs.lr).float()
        pictures = {"decoded": to_bytes(decoded), HR: to_bytes(pairs.target), LR: to_bytes(pairs.lr)}
        self.pool.add(latent=latent.half(), **pictures, **self._maps(pictures))
        return wait

    @torch.no_grad()
    def _maps(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps of HR and LR pictures in half precision, by the pool's names."""
        maps = {}
        for name in (HR, LR):
            with autocast(self.device, self.settings.precision):
                seen = self.perceptual.look(from_bytes(pictures[name].to(self.device)))
            maps |= {_map_name(name, i): each.half() for i, each in enumerate(seen.maps)}
        return maps

    def _fill_pool(self) -> None:
        while len(self.pool) < self.settings.pool_size:
            self._add_samples()

    def train_step(self, iteration: int) -> dict[str, float]:
        """One step of the branch and one of the discriminators."""
        settings, wait = self.settings, 0.0
        if not len(self.pool):
            self._fill_pool()
        elif iteration % settings.renew_every == 0:
            wait = self._add_samples()
        drawn = {name: part.to(self.device)
                 for name, part in self.pool.draw(settings.batch_size, self.generator).items()}
        decoded, real, condition = (from_bytes(drawn[name]) for name in ("decoded", HR, LR))
        real, condition = self._seen(HR, real, drawn), self._seen(LR, condition, drawn)
        rate = self.schedule.rate(iteration)
        set_rates(self.optimizer, settings.learning_rate * rate, settings.weight_decay)
        with autocast(self.device, settings.precision):
            restored = decoded + self.branch(decoded, condition.picture, drawn["latent"].float()).float()
            restored = self.perceptual.look(restored)
        metrics = {"lr": settings.learning_rate * rate, "wait": wait, "samples": float(len(decoded))}
        loss = self._loss(restored, real, condition, iteration, metrics)
        self.scaler.scale(loss).backward()
        metrics["grad_norm"] = clipped_step(self.optimizer, self.branch.parameters(), settings.clip, self.scaler)
        if self.adversary.takes_part(iteration):
            metrics["discriminator"] = self.adversary.step(restored, real, condition, rate)
        self.average.update(self.branch, iteration)
        return {"loss": loss.item(), **metrics}

    def _seen(self, name: str, picture: Tensor, drawn: Mapping[str, Tensor]) -> Seen:
        return Seen(picture, [drawn[_map_name(name, i)].float() for i in range(len(self.perceptual.channels))])

    def _loss(self, restored: Seen, real: Seen, condition: Seen, iteration: int, metrics: dict[str, float]) -> Tensor:
        settings = self.settings
        pixel = F.l1_loss(restored.picture, real.picture)
        chroma = F.l1_loss(smooth_chroma((restored.picture + 1) / 2), smooth_chroma((real.picture + 1) / 2))
        maps = map_distance(restored.maps, real.maps)
        metrics |= {"pixel": pixel.item(), "chroma": chroma.item(), "maps": maps.item()}
        loss = settings.pixel_weight * pixel + settings.chroma_weight * chroma + settings.map_weight * maps
        if self.perceptual.judge is not None and settings.perceptual_weight > 0:
            with autocast(self.device, settings.precision):
                judged = self.perceptual.judged(restored, real, settings.perceptual_side, self.generator).float()
            metrics["perceptual"] = judged.item()
            loss = loss + settings.perceptual_weight * judged
        if self.adversary.takes_part(iteration):
            loss = loss + settings.adversarial_weight * self.adversary.loss(restored, condition, metrics)
        return loss

    @torch.no_grad()
    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Free-running restoration of held-out pairs with the averaged branch (see `Validation.run`)."""
        with averaged(self.branch, self.average):
            return self.validation.run(self.model, folder / "sheets" / f"{iteration:07d}.png", fidelity=0.0,
                                       perceptual=self.perceptual)

    def state_dict(self) -> dict[str, Any]:
        """Branch, its average, the adversary, optimiser and generator, the pool without its maps, the data position."""
        pool = self.pool.state_dict()
        kept = {name: value for name, value in pool["fields"].items() if name in ("latent", "decoded", HR, LR)}
        return {"branch": self.branch.state_dict(), "average": self.average.model.state_dict(),
                "adversary": self.adversary.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "generator": self.generator.get_state(),
                "pool": {**pool, "fields": kept}, "data": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.branch.load_state_dict(state["branch"])
        self.average.model.load_state_dict(state["average"])
        self.adversary.load_state_dict(state["adversary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.pool.load_state_dict(state["pool"])
        self.pairs.load_state_dict(state["data"])
        if len(self.pool):
            self._restore_maps()

    def _restore_maps(self) -> None:
        """Compute the maps of the pool's pictures again, which states leave out."""
        count, maps = len(self.pool), SamplePool(self.settings.pool_size)
        for part in torch.arange(count).split(self.settings.batch_size):
            maps.add(**self._maps({name: self.pool.fields[name][part] for name in (HR, LR)}))
        self.pool.fields |= maps.fields

    def export(self, folder: Path) -> None:
        """The model with the averaged branch as `model.safetensors` + `config.json`, float32."""
        with averaged(self.branch, self.average):
            save_pretrained(self.model, folder)


def _map_name(picture: str, index: int) -> str:
    return f"{picture}_map{index}"


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises as `generating_parts`, and where there is no perceptual network."""
    parts, perceptual = generating_parts(args, device, ranks, DetailSettings, FIELDS), find_perceptual(device)
    if perceptual.features is None:
        raise UserError(f"--stage detail needs a perceptual network: {perceptual.description}")
    return Setup(parts.settings, parts.model, lambda: DetailStage(*parts, perceptual, device))
