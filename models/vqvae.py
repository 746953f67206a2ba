"""Multi-scale VQVAE: the convolutional autoencoder of VQGAN around the residual quantiser of VAR.

Encoder and decoder follow the latent-diffusion pair (Esser et al., "Taming Transformers", appendix): residual
blocks per resolution, self-attention at the lowest one and in the middle. Pictures are in [-1, 1].
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .branches import DetailBranch, FaithfulBranch, FidelityEncoder, Part, PixelCorrection, whole
from .config import VQVAEConfig
from .quantizer import MultiScaleQuantizer

RGB = 3
NORM_EPS = 1e-6
CODE_PICTURES = 128  # of those that a tokenizer is fitted to, whose cells codes start on


class LinearPath(nn.Module):
    """A straight way past the network: analysis (B, 3, H, W) in [-1, 1] to (B, c, H/f, W/f), and synthesis back, each
    one linear map. Both are zero until `fit`.

    From random weights a small convolutional autoencoder takes hours to do what the principal components of its blocks
    do at once. With this path beside it the network begins there and learns what a linear map cannot do (residual
    autoencoding, as in DC-AE, Chen et al. 2025, section 3.1, but with fitted maps).
    """

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


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1x1 shortcut where the widths differ."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over all cells of a feature map, added to it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, 3C)
        q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=-1))  # (B, 1, H*W, C)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
        return x + self.out(h)


class Downsample(nn.Module):
    """Halve the resolution: one pixel of padding right and bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """All blocks at one resolution: residual blocks, attention after each where asked, then a resize."""

    def __init__(self, channels: int, out_channels: int, blocks: int, groups: int, attention: bool,
                 resize: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels if i == 0 else out_channels, out_channels, groups) for i in range(blocks))
        self.attentions = nn.ModuleList(SpatialAttention(out_channels, groups) for _ in range(blocks * attention))
        self.resize = nn.Identity() if resize is None else resize

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return self.resize(x)


class Middle(nn.Sequential):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(ResidualBlock(channels, channels, groups), SpatialAttention(channels, groups),
                         ResidualBlock(channels, channels, groups))


class Encoder(nn.Module):
    """(B, 3, H, W) picture to (B, latent_channels, H/f, W/f) features. `levels` go from fine to coarse."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        coarsest = len(widths) - 1
        self.stem = nn.PixelUnshuffle(config.stem)
        self.conv_in = nn.Conv2d(3 * config.stem ** 2, config.base_width, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(widths[i - 1] if i else config.base_width, widths[i], config.res_blocks, groups,
                  attention=i == coarsest, resize=None if i == coarsest else Downsample(widths[i]))
            for i in range(len(widths)))
        self.middle = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(self.stem(image))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) latent to (B, 3, f*h, f*w). `levels` are stored fine to coarse, run in reverse."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        coarsest = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], groups)
        self.levels = nn.ModuleList(
            Level(widths[min(i + 1, coarsest)], widths[i], config.res_blocks + 1, groups,
                  attention=i == coarsest, resize=Upsample(widths[i]) if i else None)
            for i in range(len(widths)))
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3 * config.stem ** 2, 3, padding=1)
        self.stem = nn.PixelShuffle(config.stem)

    def forward(self, latent: Tensor, fidelity: list[Tensor] | None = None) -> Tensor:
        """`fidelity`: features to add before each level, fine to coarse (see `FidelityEncoder`)."""
        x = self.middle(self.conv_in(latent))
        for i in reversed(range(len(self.levels))):
            if fidelity is not None:
                x = x + fidelity[i]
            x = self.levels[i](x)
        return self.stem(self.conv_out(F.silu(self.norm_out(x))))


class VQVAE(nn.Module):
    """Tokenizer: picture <-> latent <-> one map of codes per scale."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.pre_quant = nn.Conv2d(channels, channels, 3, padding=1)
        self.quantizer = MultiScaleQuantizer(config.scales, config.vocab_size, channels, config.phi_count)
        self.post_quant = nn.Conv2d(channels, channels, 3, padding=1)
        self.decoder = Decoder(config)
        self.linear_path = LinearPath(config.downsampling, channels) if config.linear_path else None
        self.fidelity = FidelityEncoder(config) if config.fidelity_width else None
        self.faithful = FaithfulBranch(config) if config.faithful_width else None
        self.detail = DetailBranch(config) if config.detail_width else None

    @torch.no_grad()
    def fit(self, pictures: Tensor, generator: torch.Generator | None = None) -> None:
        """Start a model with a linear path as the best linear tokenizer of pictures (M, 3, S, S) in [-1, 1], codes
        included; the network, whose output layers are set to zero, is left to learn the rest."""
        self.linear_path.fit(pictures)
        for layer in (self.pre_quant, self.decoder.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.quantizer.fit_codes(self.linear_path.analysis(pictures[:CODE_PICTURES]), generator)

    def drop_encoder(self) -> None:
        """For inference: generation decodes only."""
        self.encoder = self.pre_quant = None
        if self.linear_path is not None:
            self.linear_path.analysis = None

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] to the continuous latent (B, c, N, N).

        Raises ValueError for another size, and for a model without encoder (`VARSR.for_inference`).
        """
        if self.encoder is None:
            raise ValueError("this model was made for inference and has no encoder: load the full model")
        size = self.config.image_size
        if image.shape[-2:] != (size, size):
            raise ValueError(f"the tokenizer encodes {size}x{size} pictures, got {tuple(image.shape[-2:])}: "
                             "resize first")
        image = image.to(self.pre_quant.weight.dtype)
        latent = self.pre_quant(self.encoder(image))
        return latent if self.linear_path is None else latent + self.linear_path.analysis(image)

    def decode(self, latent: Tensor, lr: Tensor | None = None, detail: float = 1.0) -> Tensor:
        """Latent (B, c, h, w) to the picture (B, 3, f*h, f*w), float32, clamped to [-1, 1].

        lr: (B, 3, f*h, f*w) in [-1, 1], the LR picture at output size, for models that look at it while they decode.
        detail: share of the detail branch's output that is added, where there is one.
        """
        return self.decode_unclamped(latent, lr, detail).clamp(-1, 1)

    def decode_unclamped(self, latent: Tensor, lr: Tensor | None = None, detail: float = 0.0) -> Tensor:
        """As `decode`, without the clamp and by default without detail, for training."""
        return self.finish(self.decode_unfinished(latent, lr), lr, latent, detail)

    def decode_unfinished(self, latent: Tensor, lr: Tensor | None = None) -> Tensor:
        """First part of `decode_unclamped`, from which `finish` makes its result: what the decoder makes of the latent,
        or the LR picture itself where a branch restores it."""
        if self.restores and lr is not None:
            return lr
        dtype = self.post_quant.weight.dtype
        latent = latent.to(dtype).contiguous(memory_format=torch.channels_last)
        features = None if self.fidelity is None or lr is None else self.fidelity(lr.to(dtype))
        decoded = self.decoder(self.post_quant(latent), features)
        return decoded if self.linear_path is None else decoded + self.linear_path.synthesis(latent)

    def finish(self, decoded: Tensor, lr: Tensor | None, latent: Tensor, detail: float) -> Tensor:
        """The second part, convolutions alone: (B, 3, H, W) of `decode_unfinished`, the LR pictures beside it, both in
        [-1, 1], and the latent (B, c, H/f, W/f), to pictures, float32, not clamped. A pixel depends on those up to
        `finishing_reach` away."""
        if self.restores and lr is not None:
            return self.restore(lr, latent, detail)
        dtype = self.post_quant.weight.dtype
        lr = None if lr is None else lr.to(dtype)
        corrected = self._corrected(decoded.to(dtype), lr).float()
        if self.detail is None or not detail or (lr is None and self.detail.sees_lr):
            return corrected
        corrected = corrected.clamp(-1, 1)
        seen = self.detail.picture_cells(corrected.to(dtype), lr)
        return corrected + detail * self.detail(seen, latent.to(dtype)).float()

    def restore(self, lr: Tensor, latent: Tensor, detail: float, part: Part | None = None) -> Tensor:
        """What the branches of a model with a faithful one make of LR pictures (B, 3, H, W) in [-1, 1] and the latent
        (B, c, H/f, W/f): a part (B, 3, part.height, part.width) of the pictures, by default all, float32, not clamped.
        No more is computed than the part needs; its pixels depend on those up to `finishing_reach` away."""
        dtype, part = self.post_quant.weight.dtype, part or whole(lr)
        lr = lr.to(dtype)
        features = self.faithful.features(lr)
        picture = self.faithful.picture(lr, features, part)
        if self.detail is None or not detail:
            return picture
        return picture.clamp(-1, 1) + detail * self.detail.part(features, latent.to(dtype), part).float()

    def _corrected(self, decoded: Tensor, lr: Tensor | None) -> Tensor:
        """Decoded pictures, by the model's correction if it has one."""
        if not self.corrects or lr is None:
            return decoded
        return self.fidelity.pixels(decoded, lr)

    def finishing_reach(self, detail: float) -> int:
        """How many pixels to each side a pixel depends on in `finish` with a share of `detail`."""
        branch = self.detail if detail else None
        if self.restores:
            return self.faithful.reach if branch is None else max(branch.reach, self.faithful.reach_through(branch))
        return (0 if branch is None else branch.reach) + (PixelCorrection.REACH if self.corrects else 0)

    @property
    def restores(self) -> bool:
        """Whether a branch restores LR pictures, and the decoder has no part in it."""
        return self.faithful is not None

    @property
    def corrects(self) -> bool:
        """Whether the model corrects what it decodes."""
        return self.fidelity is not None and self.fidelity.pixels is not None

    def tokenize(self, image: Tensor) -> list[Tensor]:
        """Codes of a picture: one (B, n_k * n_k) integer tensor per scale, row-major."""
        return self.quantizer.encode(self.encode(image)).codes
