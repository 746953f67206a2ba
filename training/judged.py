"""What the last stages of both kinds of model share: the detail branch of a frozen model learns to make pictures that
look like photographs, by pixels, a perceptual distance, feature maps and discriminators."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.varsr import VARSR
from utils.device import autocast
from utils.errors import UserError

from .adversary import Adversary, AdversarySettings, Discriminators, Seen
from .flags import BOTH
from .loop import numbers
from .perceptual import Perceptual, map_distance
from .pixel_losses import chroma_distance
from .pool import PooledSettings, PooledStage

Term = Callable[[], Tensor]  # part of a loss

# Flags that are fields of the settings under the same name.
JUDGED_FIELDS = {name: name for name in (
    "pixel_weight", "chroma_weight", "perceptual_weight", "map_weight", "adversary", "adversarial_weight", "pool_size",
    "renew_every")}


@dataclass(frozen=True)
class JudgedSettings(PooledSettings):
    """Hyper-parameters of these stages."""

    pool_size: int = 2400
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

    def __post_init__(self) -> None:
        """Raises ValueError for values that no training can have."""
        super().__post_init__()
        for name in (each.name for each in fields(self) if each.name.endswith("_weight")):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.perceptual_side < 1:
            raise UserError(f"perceptual_side must be at least 1, got {self.perceptual_side}")


class JudgedStage(PooledStage):
    """Trains the detail branch, and discriminators beside it. conditional: whether they see the LR picture too."""

    conditional: bool

    def __init__(self, model: VARSR, pairs: Any, validation: Any, settings: JudgedSettings, perceptual: Perceptual,
                 device: torch.device) -> None:
        """validation: its `photographs` tell the deviations of feature maps. Raises ValueError for a model without a
        detail branch, or where there are no feature maps."""
        if model.vqvae.detail is None:
            raise UserError("the model has no detail branch to train")
        if perceptual.features is None:
            raise UserError(f"this stage needs a perceptual network: {perceptual.description}")
        super().__init__(model, model.vqvae.detail, pairs, validation, settings, device)
        self.perceptual = perceptual
        perceptual.calibrate(validation.photographs.to(device) * 2 - 1)
        self.adversary = Adversary(
            AdversarySettings(settings.adversarial_weight, start=0, learning_rate=settings.discriminator_rate,
                              betas=settings.discriminator_betas, clip=settings.clip, precision=settings.precision,
                              loss_scale=settings.loss_scale),
            Discriminators(settings.adversary, perceptual.channels, self.conditional, settings.patch_width), device)

    def _restore(self, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Seen, Seen | None]:
        """A batch of the pool as the branch makes it, the real pictures, and the LR ones if there are any;
        in [-1, 1]. What is made beyond the number of real pictures has none to be like: discriminators alone judge
        it."""
        raise NotImplementedError

    def train_step(self, iteration: int, place: float | None = None) -> dict[str, float]:
        """One step of the branch and one of the discriminators. place: see `loop.Stage`; by default that of a run of
        iterations."""
        settings, wait = self.settings, self.renew(iteration)
        place = iteration if place is None else place
        drawn = self.drawn()
        rate = self.set_rate(place)
        with autocast(self.device, settings.precision):
            made, real, condition = self._restore(drawn)
            restored = self.perceptual.look(made)
        metrics: dict[str, float | Tensor] = {"lr": settings.learning_rate * rate, "wait": wait,
                                              "samples": float(len(made))}
        loss = self._loss(restored, real, condition, place, metrics)
        for name, (weight, term) in self._terms(drawn, restored, real).items():
            if weight > 0:
                metrics[name] = term()
                loss = loss + weight * metrics[name]
        self.step(loss, iteration, metrics)
        if self.adversary.takes_part(place):
            metrics["discriminator"] = self.adversary.step(restored, real, condition, rate)
        return numbers({"loss": loss, **metrics})

    def _loss(self, restored: Seen, real: Seen, condition: Seen | None, place: float,
              metrics: dict[str, float | Tensor]) -> Tensor:
        settings, matched = self.settings, restored.first(len(real.picture))
        pixel = F.l1_loss(matched.picture, real.picture)
        chroma = chroma_distance(matched.picture, real.picture)
        maps = map_distance(matched.maps, real.maps)
        metrics |= {"pixel": pixel, "chroma": chroma, "maps": maps}
        loss = settings.pixel_weight * pixel + settings.chroma_weight * chroma + settings.map_weight * maps
        if self.perceptual.judge is not None and settings.perceptual_weight > 0:
            with autocast(self.device, settings.precision):
                judged = self.perceptual.judged(matched, real, settings.perceptual_side, self.generator).float()
            metrics["perceptual"] = judged
            loss = loss + settings.perceptual_weight * judged
        if self.adversary.takes_part(place):
            loss = loss + settings.adversarial_weight * self.adversary.loss(restored, condition, metrics)
        return loss

    def _terms(self, drawn: Mapping[str, Tensor], restored: Seen, real: Seen) -> dict[str, tuple[float, Term]]:
        """Weights and values of what a stage adds to the loss for a batch of the pool, by the metrics' names."""
        return {}

    def viewing(self) -> dict[str, Any]:
        """Validation measures the judge's distance too."""
        return {**super().viewing(), "perceptual": self.perceptual}

    def state_dict(self) -> dict[str, Any]:
        """As the other stage's, and the adversary."""
        return {**super().state_dict(), "adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        self.adversary.load_state_dict(state["adversary"])
