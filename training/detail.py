"""Last training stage: the detail branch learns to make faithful pictures look like photographs.

All of the model but the branch (models/lr_features.py) is frozen. Its pictures and the feature maps of what does not
change, HR and LR picture, are computed once for each sample of a pool. Losses: pixels, a perceptual distance, feature
maps, and discriminators that see the LR picture too.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloader.pairs import PairSource
from evaluation.metrics.full_reference import smooth_chroma
from models.varsr import VARSR
from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .adversary import Adversary, AdversarySettings, Discriminators, Seen
from .flags import BOTH
from .loop import numbers
from .perceptual import Perceptual, find_perceptual, map_distance
from .pool import PooledSettings, PooledStage, SamplePool, from_bytes, to_bytes
from .setup import Setup, generating_parts
from .validation import Validation

# Flags that are fields of the settings under the same name.
FIELDS = {name: name for name in ("pixel_weight", "chroma_weight", "perceptual_weight", "map_weight", "adversary",
                                  "adversarial_weight", "pool_size", "renew_every")}

HR, LR = "hr", "lr"  # whose maps the pool holds


@dataclass(frozen=True)
class DetailSettings(PooledSettings):
    """Hyper-parameters of the detail stage."""

    pool_size: int = 2400
    renew_every: int = 4  # iterations between `fresh` new samples
    max_iters: int = 10000
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    discriminator_rate: float = 4e-4
    discriminator_betas: tuple[float, float] = (0.5, 0.99)
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
    val_batch: int = 24

    def __post_init__(self) -> None:
        """Raises ValueError for values that no training can have."""
        super().__post_init__()
        for name in ("pixel_weight", "chroma_weight", "perceptual_weight", "map_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("renew_every", "perceptual_side"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


class DetailStage(PooledStage):
    """Trains the detail branch, and discriminators beside it."""

    best_metric = ("st_lpips", -1.0)  # without its weights there is no best one, just the last
    fidelity = 0.0

    def __init__(self, model: VARSR, pairs: PairSource, validation: Validation, settings: DetailSettings,
                 perceptual: Perceptual, device: torch.device) -> None:
        """Raises ValueError for a model without a detail branch, or where there are no feature maps."""
        if model.vqvae.detail is None:
            raise UserError("the model has no detail branch to train")
        if perceptual.features is None:
            raise UserError(f"the detail stage needs a perceptual network: {perceptual.description}")
        super().__init__(model, model.vqvae.detail, pairs, validation, settings, device)
        self.perceptual = perceptual
        perceptual.calibrate(validation.pairs.target.to(device) * 2 - 1)
        self.adversary = Adversary(
            AdversarySettings(settings.adversarial_weight, start=0, learning_rate=settings.discriminator_rate,
                              betas=settings.discriminator_betas, clip=settings.clip, precision=settings.precision,
                              loss_scale=settings.loss_scale),
            Discriminators(settings.adversary, perceptual.channels, True, settings.patch_width), device)

    @torch.no_grad()
    def _add_samples(self) -> float:
        """Put new samples into the pool; returns the seconds that their data took."""
        pairs, latent, wait = self.generated()
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

    def train_step(self, iteration: int, place: float | None = None) -> dict[str, float]:
        """One step of the branch and one of the discriminators. place: see `loop.Stage`; by default that of a run of
        iterations."""
        settings, wait = self.settings, 0.0
        place = iteration if place is None else place
        if not len(self.pool):
            self._fill_pool()
        elif iteration % settings.renew_every == 0:
            wait = self._add_samples()
        drawn = self.drawn()
        decoded, real, condition = (from_bytes(drawn[name]) for name in ("decoded", HR, LR))
        real, condition = self._seen(HR, real, drawn), self._seen(LR, condition, drawn)
        rate = self.set_rate(place)
        with autocast(self.device, settings.precision):
            restored = decoded + self.trained(decoded, condition.picture, drawn["latent"].float()).float()
            restored = self.perceptual.look(restored)
        metrics: dict[str, float | Tensor] = {"lr": settings.learning_rate * rate, "wait": wait,
                                              "samples": float(len(decoded))}
        loss = self._loss(restored, real, condition, place, metrics)
        self.step(loss, iteration, metrics)
        if self.adversary.takes_part(place):
            metrics["discriminator"] = self.adversary.step(restored, real, condition, rate)
        return numbers({"loss": loss, **metrics})

    def _seen(self, name: str, picture: Tensor, drawn: Mapping[str, Tensor]) -> Seen:
        return Seen(picture, [drawn[_map_name(name, i)].float() for i in range(len(self.perceptual.channels))])

    def _loss(self, restored: Seen, real: Seen, condition: Seen, place: float,
              metrics: dict[str, float | Tensor]) -> Tensor:
        settings = self.settings
        pixel = F.l1_loss(restored.picture, real.picture)
        chroma = F.l1_loss(smooth_chroma((restored.picture + 1) / 2), smooth_chroma((real.picture + 1) / 2))
        maps = map_distance(restored.maps, real.maps)
        metrics |= {"pixel": pixel, "chroma": chroma, "maps": maps}
        loss = settings.pixel_weight * pixel + settings.chroma_weight * chroma + settings.map_weight * maps
        if self.perceptual.judge is not None and settings.perceptual_weight > 0:
            with autocast(self.device, settings.precision):
                judged = self.perceptual.judged(restored, real, settings.perceptual_side, self.generator).float()
            metrics["perceptual"] = judged
            loss = loss + settings.perceptual_weight * judged
        if self.adversary.takes_part(place):
            loss = loss + settings.adversarial_weight * self.adversary.loss(restored, condition, metrics)
        return loss

    def judging(self) -> dict[str, Any]:
        """Validation measures the judge's distance too."""
        return {"perceptual": self.perceptual}

    def state_dict(self) -> dict[str, Any]:
        """As the other stage's, the pool without its maps, and the adversary."""
        state = super().state_dict()
        fields = {name: value for name, value in state["pool"]["fields"].items()
                  if name in ("latent", "decoded", HR, LR)}
        return {**state, "pool": {**state["pool"], "fields": fields}, "adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        self.adversary.load_state_dict(state["adversary"])
        if len(self.pool):
            self._restore_maps()

    def _restore_maps(self) -> None:
        """Compute the maps of the pool's pictures again, which states leave out."""
        count, maps = len(self.pool), SamplePool(self.settings.pool_size, self.pool.device)
        for part in torch.arange(count).split(self.settings.batch_size):
            maps.add(**self._maps({name: self.pool.fields[name][part] for name in (HR, LR)}))
        self.pool.fields |= maps.fields


def _map_name(picture: str, index: int) -> str:
    return f"{picture}_map{index}"


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises as `generating_parts`, and where there is no perceptual network."""
    parts, perceptual = generating_parts(args, device, ranks, DetailSettings, FIELDS), find_perceptual(device)
    if perceptual.features is None:
        raise UserError(f"--stage detail needs a perceptual network: {perceptual.description}")
    return Setup(parts.settings, parts.model, lambda: DetailStage(*parts, perceptual, device))
