"""The adversarial part of decoder training: a patch discriminator, its optimiser, and the loss that it gives.

The stage's own losses come first; from `start` of the way on the discriminator judges too, weighed so that both pull
equally at the decoder's last layer (VQGAN, eq. 7).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss

from .optim import clipped_step, parameter_groups, set_rates
from .precision import autocast
from .ranks import Ranks


@dataclass(frozen=True)
class AdversarySettings:
    """How a discriminator takes part. The warm-up without it ends at iteration `start`."""

    weight: float  # of the adversarial loss, beside the adaptive weight; 0: no discriminator
    start: int
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only


class Adversary:
    """A discriminator in training. conditional: it sees the LR picture beside the one it judges. ranks: those that
    train it together, each on pictures of its own."""

    def __init__(self, settings: AdversarySettings, device: torch.device, conditional: bool,
                 ranks: Ranks | None = None) -> None:
        self.settings, self.device, self.ranks = settings, device, ranks or Ranks()
        self.discriminator = PatchDiscriminator(conditional=conditional).to(
            device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.discriminator, settings.weight_decay),
                                           lr=settings.learning_rate, betas=settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=settings.loss_scale,
                                           enabled=settings.precision == "fp16")

    def takes_part(self, iteration: int) -> bool:
        """Whether the warm-up is over."""
        return self.settings.weight > 0 and iteration >= self.settings.start

    def loss(self, own_loss: Tensor, decoded: Tensor, last_layer: Tensor, lr: Tensor | None,
             metrics: dict[str, float]) -> Tensor:
        """What is added to a stage's `own_loss` of `decoded` pictures (B, 3, H, W) in [-1, 1]; tells `metrics`."""
        self.discriminator.requires_grad_(False)
        with autocast(self.device, self.settings.precision):
            loss = -self.discriminator(decoded, lr).float().mean()
        weight = adaptive_weight(self.scaler.scale(own_loss), self.scaler.scale(loss), last_layer,
                                 average_=self.ranks.average_)
        metrics["adversarial"], metrics["adaptive_weight"] = loss.item(), weight.item()
        return self.settings.weight * weight * loss

    def step(self, decoded: Tensor, real: Tensor, lr: Tensor | None, rate: float) -> float:
        """One optimiser step at `rate` of the peak learning rate; returns the hinge loss."""
        settings = self.settings
        set_rates(self.optimizer, settings.learning_rate * rate, settings.weight_decay)
        self.discriminator.requires_grad_(True)
        with autocast(self.device, settings.precision):
            logits = self.discriminator(torch.cat([real, decoded.detach()]),
                                        None if lr is None else torch.cat([lr, lr])).float()
        loss = hinge_loss(*logits.chunk(2))
        self.scaler.scale(loss).backward()
        parameters = list(self.discriminator.parameters())
        self.ranks.average_([parameter.grad for parameter in parameters])
        clipped_step(self.optimizer, parameters, settings.clip, self.scaler)
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Discriminator, optimiser and loss scale."""
        return {"model": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.discriminator.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
