"""Discriminators, which tell photographs from what a network draws, and their side of an adversarial training.

One judges patches of pixels (Isola et al., pix2pix, section 3.2), the projected ones feature maps of a pretrained
network (Sauer et al., "Projected GANs converge faster", 2021), which need not learn to see first.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .flags import ADVERSARIES, PATCH, PROJECTED
from .optim import clipped_step, gradient_scaler, parameter_groups, restore_optimizer, set_rates

SLOPE = 0.2  # of the leaky ReLU
NARROWEST_HEAD, WIDEST_HEAD = 24, 64
# Each map lies deeper in the network than the one before, and its judge's gradient at the pixels is two to three times
# larger (measured); unweighed, the deepest decides alone, and is fooled by hatching that no person takes for texture.
PULL = 1 / 3


@dataclass(frozen=True)
class Seen:
    """What is judged: pictures (B, 3, H, W) in [-1, 1] and their feature maps (none where nobody looks at them)."""

    picture: Tensor
    maps: Sequence[Tensor] = ()

    def detach(self) -> Seen:
        """The same without gradients."""
        return Seen(self.picture.detach(), [each.detach() for each in self.maps])

    def first(self, count: int) -> Seen:
        """The first so many of them."""
        return Seen(self.picture[:count], [each[:count] for each in self.maps])


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Module:
    # spectral norm keeps it from outrunning a small decoder (Miyato et al., 2018)
    return spectral_norm(nn.Conv2d(channels, out, kernel, stride=stride, padding=1))


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of a picture, on request given the LR picture it was restored from.

    picture, lr: (B, 3, H, W) in [-1, 1]; returns logits (B, 1, H/8, W/8), positive for real.
    """

    def __init__(self, width: int = 48, conditional: bool = True) -> None:
        """conditional: whether it is given the LR picture."""
        super().__init__()
        self.layers = nn.ModuleList([
            _conv(6 if conditional else 3, width, 4, 2), _conv(width, 2 * width, 4, 2),
            _conv(2 * width, 4 * width, 4, 2), _conv(4 * width, 4 * width, 3), _conv(4 * width, 1, 3)])

    def forward(self, picture: Tensor, lr: Tensor | None = None) -> Tensor:
        x = picture if lr is None else torch.cat([picture, lr], dim=1)
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), SLOPE)
        return self.layers[-1](x)


class ProjectedHead(nn.Module):
    """Judges one feature map (B, C, h, w), on request beside that of the LR picture: logits (B, 1, h, w).

    A fixed random 1x1 convolution mixes the channels first, so that no channel can be leant on alone (section 3.2 of
    Projected GANs).
    """

    def __init__(self, channels: int, conditional: bool) -> None:
        super().__init__()
        width = min(max(channels, NARROWEST_HEAD), WIDEST_HEAD)
        inputs = 2 * channels if conditional else channels
        self.register_buffer("mixing", torch.randn(width, inputs, 1, 1) / inputs ** 0.5)
        self.layers = nn.ModuleList([_conv(width, width, 3), _conv(width, width, 3), _conv(width, 1, 3)])

    def forward(self, map_: Tensor, condition: Tensor | None) -> Tensor:
        x = map_ if condition is None else torch.cat([map_, condition], dim=1)
        x = F.conv2d(x, self.mixing.to(x.dtype))
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), SLOPE)
        return self.layers[-1](x)


class Discriminators(nn.Module):
    """The discriminators of a stage: one for pixels, one for each feature map, or both."""

    def __init__(self, kind: str, channels: Sequence[int], conditional: bool, patch_width: int = 48) -> None:
        """kind: one of ADVERSARIES. channels: of the feature maps, for the projected ones. conditional: whether they
        are given what was seen of the LR picture."""
        super().__init__()
        if kind not in ADVERSARIES:
            raise UserError(f"unknown adversary {kind!r}: choose one of {', '.join(ADVERSARIES)}")
        self.patch = None if kind == PROJECTED else PatchDiscriminator(patch_width, conditional)
        self.heads = nn.ModuleList([] if kind == PATCH else (ProjectedHead(each, conditional) for each in channels))

    @property
    def weights(self) -> list[float]:
        """How much the judged network listens to each discriminator."""
        return [PULL ** i for i in range(len(self.heads))] + ([] if self.patch is None else [1.0])

    def forward(self, seen: Seen, condition: Seen | None = None) -> list[Tensor]:
        """Logits of each discriminator, positive for real."""
        conditions = [None] * len(self.heads) if condition is None else condition.maps
        logits = [head(*each) for head, *each in zip(self.heads, seen.maps, conditions, strict=True)] \
            if self.heads else []
        if self.patch is not None:
            logits.append(self.patch(seen.picture, None if condition is None else condition.picture))
        return logits


def hinge_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Loss of discriminators on their logits of real and restored pictures (Lim & Ye, 2017), their mean."""
    losses = [0.5 * (F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean())
              for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_loss(fake: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """What the judged network minimises: minus the mean logits, their weighted sum."""
    return -torch.stack([weight * logits.float().mean() for weight, logits in zip(weights, fake, strict=True)]).sum()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, bound: float = 1e4,
                    average_: Callable[[list[Tensor]], None] | None = None) -> Tensor:
    """Weight that lets both losses pull equally at the decoder's last layer (VQGAN, eq. 7).

    average_: for training on several devices: puts the means of all into the gradients of one.
    """
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    if average_ is not None:
        average_(gradients)
    of_reconstruction, of_adversarial = (gradient.norm() for gradient in gradients)
    return (of_reconstruction / (of_adversarial + 1e-4)).clamp(max=bound).detach()


@dataclass(frozen=True)
class AdversarySettings:
    """How discriminators take part. The warm-up without them ends at place `start` of the run's course."""

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
        self.scaler = gradient_scaler(device, settings.precision, settings.loss_scale)

    def takes_part(self, place: float) -> bool:
        """Whether the warm-up is over."""
        return self.settings.weight > 0 and place >= self.settings.start

    def loss(self, fake: Seen, condition: Seen | None, metrics: dict[str, float | Tensor]) -> Tensor:
        """The adversarial loss of what was drawn, without its weight; tells `metrics`."""
        self.discriminators.requires_grad_(False)
        with autocast(self.device, self.settings.precision):
            loss = generator_loss(self.discriminators(fake, condition), self.discriminators.weights)
        metrics["adversarial"] = loss.detach()
        return loss

    def balanced_loss(self, own_loss: Tensor, fake: Seen, condition: Seen | None, last_layer: Tensor,
                      metrics: dict[str, float | Tensor]) -> Tensor:
        """What is added to a stage's `own_loss` so that both pull at its last layer by `weight` (VQGAN, eq. 7)."""
        loss = self.loss(fake, condition, metrics)
        weight = adaptive_weight(self.scaler.scale(own_loss), self.scaler.scale(loss), last_layer,
                                 average_=self.ranks.average_)
        metrics["adaptive_weight"] = weight
        return self.settings.weight * weight * loss

    def step(self, fake: Seen, real: Seen, condition: Seen | None, rate: float) -> Tensor:
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
        clipped_step([self.optimizer], parameters, settings.clip, self.scaler)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Discriminators, optimiser and loss scale."""
        return {"model": self.discriminators.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.discriminators.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
