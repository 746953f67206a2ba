"""A straight way past the tokenizer's network: blocks of pixels to latent cells and back, each by one linear map.

From random weights a small convolutional autoencoder takes hours to do what the principal components of its blocks do
at once. With this path beside it the network begins there and learns what a linear map cannot do (residual
autoencoding, as in DC-AE, Chen et al. 2025, section 3.1, but with fitted maps).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RGB = 3


class LinearPath(nn.Module):
    """Analysis (B, 3, H, W) in [-1, 1] to (B, c, H/f, W/f), and synthesis back. Both are zero until `fit`."""

    def __init__(self, factor: int, channels: int) -> None:
        super().__init__()
        self.analysis = nn.Conv2d(RGB, channels, factor, stride=factor)
        self.synthesis = nn.ConvTranspose2d(channels, RGB, factor, stride=factor)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Take the principal components of the blocks of pictures (B, 3, H, W) in [-1, 1]: of all linear maps to that
        many channels those that lose least.

        One factor for all channels gives the latent a mean square of 1, and keeps its distances those of the pixels.
        """
        weight = self.analysis.weight
        channels, factor = weight.shape[0], weight.shape[-1]
        blocks = F.unfold(pictures.double(), factor, stride=factor).transpose(1, 2).flatten(0, 1)  # (M, 3 f^2)
        mean = blocks.unflatten(1, (RGB, -1)).mean((0, 2))  # (3,), all that a transposed convolution's bias can hold
        blocks = blocks - mean.repeat_interleave(factor ** 2)
        variances, directions = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
        components = directions[:, -channels:].flip(1).T  # (c, 3 f^2), the largest variance first
        scale = variances[-channels:].mean().sqrt()
        shaped = components.view(-1, RGB, factor, factor)
        weight.copy_(shaped / scale)
        self.analysis.bias.copy_(-(components @ mean.repeat_interleave(factor ** 2)) / scale)
        self.synthesis.weight.copy_(shaped * scale)
        self.synthesis.bias.copy_(mean)
