"""The adversarial part of training: discriminators, their optimiser, and the loss that they give."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.discriminator import Discriminators, Seen, adaptive_weight, generator_loss, hinge_loss

from .device import autocast
from .optim import clipped_step, parameter_groups, set_rates
from .ranks import Ranks


@dataclass(frozen=True)
class AdversarySettings:
    """How discriminators take part. The warm-up without them ends at iteration `start`."""

    weight: float  # of the adversarial loss; 0: no discriminator
    start: int
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only


class Adversary:
    """Discriminators in training. ranks: those that train them together, each on pictures of its own."""

    def __init__(self, settings: AdversarySettings, discriminators: Discriminators, device: torch.device,
                 ranks: Ranks | None = None) -> None:
        self.settings, self.device, self.ranks = settings, device, ranks or Ranks()
        self.discriminators = discriminators.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.discriminators, settings.weight_decay),
                                           lr=settings.learning_rate, betas=settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=settings.loss_scale,
                                           enabled=settings.precision == "fp16")

    def takes_part(self, iteration: int) -> bool:
        """Whether the warm-up is over."""
        return self.settings.weight > 0 and iteration >= self.settings.start

    def loss(self, fake: Seen, condition: Seen | None, metrics: dict[str, float]) -> Tensor:
        """The adversarial loss of what was drawn, without its weight; tells `metrics`."""
        self.discriminators.requires_grad_(False)
        with autocast(self.device, self.settings.precision):
            loss = generator_loss(self.discriminators(fake, condition), self.discriminators.weights)
        metrics["adversarial"] = loss.item()
        return loss

    def balanced_loss(self, own_loss: Tensor, fake: Seen, condition: Seen | None, last_layer: Tensor,
                      metrics: dict[str, float]) -> Tensor:
        """What is added to a stage's `own_loss` so that both pull at its last layer by `weight` (VQGAN, eq. 7)."""
        loss = self.loss(fake, condition, metrics)
        weight = adaptive_weight(self.scaler.scale(own_loss), self.scaler.scale(loss), last_layer,
                                 average_=self.ranks.average_)
        metrics["adaptive_weight"] = weight.item()
        return self.settings.weight * weight * loss

    def step(self, fake: Seen, real: Seen, condition: Seen | None, rate: float) -> float:
        """One optimiser step at `rate` of the peak learning rate; returns the hinge loss."""
        settings = self.settings
        set_rates(self.optimizer, settings.learning_rate * rate, settings.weight_decay)
        self.discriminators.requires_grad_(True)
        with autocast(self.device, settings.precision):
            loss = hinge_loss(self.discriminators(real.detach(), condition),
                              self.discriminators(fake.detach(), condition))
        self.scaler.scale(loss).backward()
        parameters = list(self.discriminators.parameters())
        self.ranks.average_([parameter.grad for parameter in parameters])
        clipped_step(self.optimizer, parameters, settings.clip, self.scaler)
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Discriminators, optimiser and loss scale."""
        return {"model": self.discriminators.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.discriminators.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
