"""What makes a restored picture beside the tokenizer: branches of residual blocks, and what a decoder may see of the
LR picture.

There are two branches: the faithful one, from the LR picture alone, and the detail branch, which adds what the
generated latent says and what makes it look like a photograph. Both are residual blocks at a quarter of the resolution,
as in ESRGAN (Wang et al., 2018, section 3.1), painted at the full one. They have no norms: one that sees a whole map
lets a spike in one place rescale all the rest, the droplets of StyleGAN 2 (Karras et al., 2020, section 2); and
fidelity is about absolute levels.

In a model without a faithful branch the decoder makes the faithful picture. The published one sees the generated latent
alone, and a small tokenizer pays for that in lost detail that the LR picture still shows. Feature skips from the
degraded picture into the decoder, trained last and on generated latents, repair it (the idea of CodeFormer, section
3.3, and of StableSR, section 3.2).
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DETAIL_STRIDE, VQVAEConfig

RGB = 3
SLOPE = 0.2  # of the leaky ReLU
RESIDUAL_SCALE = 0.2  # of a block's first output, so that many of them in a row start close to the identity
OUTPUT_SCALE = 0.1  # of the first output: near zero, but with a signal to learn from
PAINT_REACH = 2  # cells that the convolutions of `Branch.paint` add up to


class Part(NamedTuple):
    """A rectangle of a map, in its cells."""

    top: int
    left: int
    height: int
    width: int

    def of(self, maps: Tensor) -> Tensor:
        """What lies in it of maps (..., H, W)."""
        return maps[..., self.top:self.top + self.height, self.left:self.left + self.width]

    def seen_from(self, other: Part) -> Part:
        """The same place in a map that begins where `other` does."""
        return self._replace(top=self.top - other.top, left=self.left - other.left)

    def scaled(self, factor: int) -> Part:
        """The same place where each cell is `factor` cells long."""
        return Part(*(factor * each for each in self))

    def covered(self, factor: int, margin: int, height: int, width: int) -> Part:
        """The place in a map of height x width cells, each `factor` of this one's long, that covers this one and
        `margin` of the map's cells around it where there are as many."""
        def side(first: int, length: int, limit: int) -> tuple[int, int]:
            start = max(first // factor - margin, 0)
            return start, min(-(-(first + length) // factor) + margin, limit) - start
        (top, rows), (left, columns) = side(self.top, self.height, height), side(self.left, self.width, width)
        return Part(top, left, rows, columns)


def whole(maps: Tensor) -> Part:
    """All of maps (..., H, W)."""
    return Part(0, 0, *maps.shape[-2:])


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


class BranchBlock(nn.Module):
    """x + conv(leaky(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width, RESIDUAL_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(_activation(self.conv1(x)))


class Branch(nn.Module):
    """Cells (B, channels, h, w) of 4x4 pixels to features (B, width, h, w), and these to pixels (B, 3, 4h, 4w)."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.conv_in = _conv(channels, width)
        self.blocks = nn.ModuleList(BranchBlock(width) for _ in range(blocks))
        self.conv_trunk = _conv(width, width)
        self.up1 = _conv(width, width * 3 // 4)
        self.up2 = _conv(width * 3 // 4, width // 2)
        self.conv_full = _conv(width // 2, width // 2)
        self.conv_out = _conv(width // 2, RGB, OUTPUT_SCALE)

    @property
    def trunk_reach(self) -> int:
        """Cells to each side that a cell of the features depends on, at most."""
        return 2 * len(self.blocks) + 2  # 3x3 convolutions

    def trunk(self, cells: Tensor) -> Tensor:
        """Cells to features."""
        start = x = self.conv_in(cells.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return start + self.conv_trunk(x)

    def paint(self, features: Tensor) -> Tensor:
        """Features to pixels."""
        x = features
        for up in (self.up1, self.up2):
            x = _activation(up(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_out(_activation(self.conv_full(x)))

    def paint_part(self, features: Tensor, part: Part) -> Tensor:
        """A part (B, 3, part.height, part.width) of the pixels, from no more of the features than it needs."""
        cells = part.covered(DETAIL_STRIDE, PAINT_REACH, *features.shape[-2:])
        return part.seen_from(cells.scaled(DETAIL_STRIDE)).of(self.paint(cells.of(features)))

    def hidden_weights(self) -> list[nn.Parameter]:
        """Weights of the convolutions between features, which are no input and no output."""
        convolutions = [conv for block in self.blocks for conv in (block.conv1, block.conv2)]
        return [conv.weight for conv in (*convolutions, self.conv_trunk, self.up1, self.up2, self.conv_full)]


class FaithfulBranch(Branch):
    """LR picture (B, 3, H, W) in [-1, 1], at output size, to the restored one, not clamped, as near to the photograph
    at every pixel as it can be: what it adds is soft. It takes the place of what the decoder makes of the latent.

    H and W are multiples of 4. `features` are what the detail branch goes on from.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(RGB * DETAIL_STRIDE ** 2, config.faithful_width, config.faithful_blocks)
        self.unshuffle = nn.PixelUnshuffle(DETAIL_STRIDE)

    @property
    def reach(self) -> int:
        """Pixels that a pixel depends on to each side, at most."""
        return (self.trunk_reach + PAINT_REACH) * DETAIL_STRIDE

    def reach_through(self, branch: Branch) -> int:
        """Pixels that a pixel of what another branch paints from the features depends on to each side, at most."""
        return self.reach + branch.trunk_reach * DETAIL_STRIDE

    def features(self, lr: Tensor) -> Tensor:
        """(B, faithful_width, H/4, W/4) of LR pictures."""
        return self.trunk(self.unshuffle(lr))

    def picture(self, lr: Tensor, features: Tensor, part: Part) -> Tensor:
        """A part of the restored picture, float32, from the features of all of the LR one."""
        return part.of(lr).float() + self.paint_part(features, part).float()

    def forward(self, lr: Tensor) -> Tensor:
        """See the class."""
        return self.picture(lr, self.features(lr), whole(lr))


class LatentCells(nn.Module):
    """Latent (B, c, H/f, W/f) to cells (B, c, H/4, W/4), each place in a latent cell with weights of its own.

    deviation: (c,) of the latent's channels, which is divided out: the faint ones carry the detail, and would be heard
    a twentieth as loud as the strong ones.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * factor ** 2, 1)
        self.shuffle = nn.PixelShuffle(factor)
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, latent: Tensor) -> Tensor:
        return self.shuffle(self.conv(latent / self.deviation[:, None, None]))


class DetailBranch(Branch):
    """What is seen of the picture so far (B, channels, H/4, W/4) and the latent (B, c, H/f, W/f) to the detail
    (B, 3, H, W) that is added to it.

    What is seen are the features of the faithful branch; in a model without one, cells of the decoded picture and,
    with `detail_lr` in the configuration, of the LR one (`picture_cells`).

    The faithful picture is right in the mean at every pixel, over everything that a photograph might show there. This
    branch makes it look like one, trained on perceptual and adversarial losses while the rest stands still. Its output
    is a sum, so any share of it may be added.

    H and W are multiples of f, the tokenizer's down-sampling. A pixel depends on nothing that is more than `reach`
    pixels away, so a large picture may be drawn in parts.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        self.sees_features, self.sees_lr = config.faithful_width > 0, config.detail_lr
        pictures = 2 if self.sees_lr else 1
        seen = config.faithful_width or pictures * RGB * DETAIL_STRIDE ** 2
        super().__init__(seen + config.latent_channels, config.detail_width, config.detail_blocks)
        self.unshuffle = nn.PixelUnshuffle(DETAIL_STRIDE)
        self.latent_factor = config.downsampling // DETAIL_STRIDE
        self.latent_cells = LatentCells(config.latent_channels, self.latent_factor) if self.sees_features else (
            nn.Upsample(scale_factor=float(self.latent_factor), mode="nearest"))

    @property
    def reach(self) -> int:
        """Pixels of what it sees and of the latent that a pixel depends on to each side, at most."""
        return (self.trunk_reach + PAINT_REACH + self.latent_factor - 1) * DETAIL_STRIDE

    def picture_cells(self, decoded: Tensor, lr: Tensor | None) -> Tensor:
        """What a branch of a model without a faithful one sees of decoded and LR pictures (B, 3, H, W) in [-1, 1]."""
        return torch.cat([self.unshuffle(each) for each in ([decoded, lr] if self.sees_lr else [decoded])], dim=1)

    def forward(self, seen: Tensor, latent: Tensor) -> Tensor:
        """See the class."""
        return self.paint(self._features(seen, latent))

    def part(self, seen: Tensor, latent: Tensor, part: Part) -> Tensor:
        """A part of the detail, from no more of what is seen than it needs."""
        pixels = self.latent_factor * DETAIL_STRIDE  # of a latent cell
        cells = part.covered(pixels, -(-self.reach // pixels), *latent.shape[-2:])
        features = self._features(cells.scaled(self.latent_factor).of(seen), cells.of(latent))
        return self.paint_part(features, part.seen_from(cells.scaled(pixels)))

    def _features(self, seen: Tensor, latent: Tensor) -> Tensor:
        return self.trunk(torch.cat([seen, self.latent_cells(latent)], dim=1))


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
