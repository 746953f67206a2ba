"""Patch discriminator for the adversarial part of decoder training (Isola et al., pix2pix, section 3.2)."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2  # of the leaky ReLU


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of a picture, on request given the LR picture it was restored from.

    picture, lr: (B, 3, H, W) in [-1, 1]; returns logits (B, 1, H/8, W/8), positive for real. Spectral norm keeps
    it from outrunning a small decoder (Miyato et al., 2018).
    """

    def __init__(self, width: int = 48, conditional: bool = True) -> None:
        """conditional: whether it is given the LR picture."""
        super().__init__()
        def conv(channels: int, out: int, stride: int) -> nn.Module:
            kernel = 4 if stride == 2 else 3
            return spectral_norm(nn.Conv2d(channels, out, kernel, stride=stride, padding=1))
        self.layers = nn.ModuleList([
            conv(6 if conditional else 3, width, 2), conv(width, 2 * width, 2), conv(2 * width, 4 * width, 2),
            conv(4 * width, 4 * width, 1), conv(4 * width, 1, 1)])

    def forward(self, picture: Tensor, lr: Tensor | None = None) -> Tensor:
        x = picture if lr is None else torch.cat([picture, lr], dim=1)
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), SLOPE)
        return self.layers[-1](x)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator loss on logits of real and restored pictures (Lim & Ye, 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


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
