"""What the decoder sees of the LR picture: features for its levels, a correction of its pixels, and the detail branch
(which class-to-image has too, without an LR picture).

The published decoder sees the generated latent alone, and a small tokenizer pays for that in lost detail that the LR
picture still shows. Feature skips from the degraded picture into the decoder, trained last and on generated latents,
repair it (the idea of CodeFormer, section 3.3, and of StableSR, section 3.2).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DETAIL_STRIDE, VQVAEConfig

RGB = 3
SLOPE = 0.2  # of the leaky ReLU
RESIDUAL_SCALE = 0.2  # of a block's first output, so that many of them in a row start close to the identity
OUTPUT_SCALE = 0.1  # of the first output: near zero, but with a signal to learn from


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

    A decoder that ends in a pixel shuffle draws every block of pixels on its own. A correction at full resolution,
    which sees across their borders, takes the grid away that they leave.

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


def _conv(channels: int, out: int, scale: float = 1.0) -> nn.Conv2d:
    """3x3 convolution, its weights drawn for a leaky ReLU behind it (He et al., 2015), times `scale`."""
    conv = nn.Conv2d(channels, out, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    with torch.no_grad():
        conv.weight.mul_(scale)
    nn.init.zeros_(conv.bias)
    return conv


def _activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class DetailBlock(nn.Module):
    """x + conv(leaky(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width, RESIDUAL_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(_activation(self.conv1(x)))


class DetailBranch(nn.Module):
    """Decoded picture and LR picture, both (B, 3, H, W) in [-1, 1], and the latent (B, c, H/f, W/f) that the picture
    was decoded from, to the detail (B, 3, H, W) that is added to it. Without `detail_lr` in the configuration there is
    no LR picture.

    The decoder is trained for the right level at every pixel, and so averages over everything that a photograph might
    show there. This branch adds what makes it look like a photograph: residual blocks at a quarter of the resolution,
    as in ESRGAN (Wang et al., 2018, section 3.1), trained on perceptual and adversarial losses while the decoder stands
    still. It has no norms: one that sees a whole map lets a spike in one place rescale all the rest, the droplets of
    StyleGAN 2 (Karras et al., 2020, section 2). Its output is a sum, so any share of it may be added.

    H and W are multiples of f, the tokenizer's down-sampling. A pixel depends on nothing that is more than `reach`
    pixels away, so a large picture may be drawn in parts.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width = config.detail_width
        self.latent_factor = config.downsampling // DETAIL_STRIDE
        self.unshuffle = nn.PixelUnshuffle(DETAIL_STRIDE)
        self.sees_lr = config.detail_lr
        pictures = 2 if self.sees_lr else 1
        self.conv_in = _conv(pictures * RGB * DETAIL_STRIDE ** 2 + config.latent_channels, width)
        self.blocks = nn.ModuleList(DetailBlock(width) for _ in range(config.detail_blocks))
        self.conv_trunk = _conv(width, width)
        self.up1 = _conv(width, width * 3 // 4)
        self.up2 = _conv(width * 3 // 4, width // 2)
        self.conv_full = _conv(width // 2, width // 2)
        self.conv_out = _conv(width // 2, RGB, OUTPUT_SCALE)

    @property
    def reach(self) -> int:
        """Pixels that a pixel depends on to each side, at most."""
        convolutions = 2 * len(self.blocks) + 2  # 3x3, a cell each; those at full resolution add up to two cells
        return (convolutions + 2 + self.latent_factor - 1) * DETAIL_STRIDE

    def forward(self, decoded: Tensor, lr: Tensor | None, latent: Tensor) -> Tensor:
        """See the class."""
        pictures = [decoded, lr] if self.sees_lr else [decoded]
        cells = F.interpolate(latent, scale_factor=float(self.latent_factor), mode="nearest")
        x = torch.cat([*map(self.unshuffle, pictures), cells], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        start = x = self.conv_in(x)
        for block in self.blocks:
            x = block(x)
        x = start + self.conv_trunk(x)
        for up in (self.up1, self.up2):
            x = _activation(up(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_out(_activation(self.conv_full(x)))
