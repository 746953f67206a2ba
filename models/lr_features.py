"""Fidelity features: what the decoder may take straight from the LR picture.

The published decoder sees the generated latent alone, and a small tokenizer pays for that in lost detail that the
LR picture still shows. Feature skips from the degraded picture into the decoder, trained last and on generated
latents, repair it (the idea of CodeFormer, section 3.3, and of StableSR, section 3.2).

A decoder that ends in a pixel shuffle draws every block of pixels on its own. A correction at full resolution, which
sees across their borders, takes the grid away that they leave.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VQVAEConfig


class ConvBlock(nn.Module):
    """x + conv(SiLU(conv(SiLU(x)))), without norms: fidelity is about absolute levels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PixelCorrection(nn.Module):
    """Decoded picture and LR picture, both (B, 3, H, W) in [-1, 1], to the picture corrected; at first unchanged
    (`FidelityEncoder.silence`).

    Any H and W. A pixel depends on those up to `REACH` pixels away and on nothing else, so a large picture may be
    corrected in parts.
    """

    REACH = 3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(6, width, 3, padding=1)
        self.conv_middle = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, decoded: Tensor, lr: Tensor) -> Tensor:
        x = torch.cat([decoded, lr], dim=1).contiguous(memory_format=torch.channels_last)
        return decoded + self.conv_out(F.silu(self.conv_middle(F.silu(self.conv_in(x)))))


class FidelityEncoder(nn.Module):
    """LR picture (B, 3, H, W) in [-1, 1] to one feature map per decoder level, shaped as that level's input.

    The output convolutions start at zero, so that a decoder with new fidelity features decodes as before.
    `pixels` is the correction of what it decodes, or None.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width, widths = config.fidelity_width, config.widths
        coarsest = len(widths) - 1
        self.stem = nn.PixelUnshuffle(config.stem)
        self.conv_in = nn.Conv2d(3 * config.stem ** 2, width, 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(ConvBlock(width) for _ in range(config.fidelity_blocks))) for _ in widths)
        self.downs = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(coarsest))
        self.outs = nn.ModuleList(
            nn.Conv2d(width, widths[min(i + 1, coarsest)], 1) for i in range(len(widths)))
        self.pixels = PixelCorrection(config.fidelity_pixels) if config.fidelity_pixels else None
        self.silence()

    @torch.no_grad()
    def silence(self) -> None:
        """Set what the features and the correction add to zero, as at first; what leads there is kept."""
        for out in [*self.outs, *([] if self.pixels is None else [self.pixels.conv_out])]:
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def forward(self, lr: Tensor) -> list[Tensor]:
        """Feature maps fine to coarse: entry i has the resolution of decoder level i."""
        x = self.conv_in(self.stem(lr))
        features = []
        for i, level in enumerate(self.levels):
            x = level(x)
            features.append(self.outs[i](x))
            if i < len(self.downs):
                x = self.downs[i](x)
        return features
