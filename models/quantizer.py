"""Residual quantisation over scales (VAR, section 3.2 and algorithms 1 and 2).

The latent is described by K maps of codes of growing side: each scale quantises what the scales before it left
over. `f_hat` is the sum of what the codes say so far, always at the full N x N.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.device import exact_type

PHI_RATIO = 0.5  # share of the convolution in phi
USAGE_DECAY = 0.99
FIT_ROUNDS = 3
FIT_PART = 32  # pictures whose distances to all codes are in memory at a time


@dataclass
class Quantized:
    """What encoding gives. codes: K tensors (B, n_k^2); f_hat and residual_last: (B, c, N, N) float32."""

    codes: list[Tensor]
    f_hat: Tensor  # sum over all scales
    residual_last: Tensor  # what was left over before the last scale's codes were subtracted
    inputs: Tensor | None = None  # teacher-forcing inputs of scales 2..K, (B, n_2^2 + ... + n_K^2, c)


class MultiScaleQuantizer(nn.Module):
    """One codebook shared by all scales, and the few convolutions phi that smooth what a coarse scale adds."""

    def __init__(self, scales: Sequence[int], vocab_size: int, channels: int, phi_count: int) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.codebook = nn.Embedding(vocab_size, channels)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(phi_count))
        self.register_buffer("code_usage", torch.zeros(len(self.scales), vocab_size))

    @property
    def side(self) -> int:
        """N, the side of the last scale."""
        return self.scales[-1]

    def phi_index(self, scale: int) -> int:
        """Which phi serves a scale: the nearest of evenly spread ticks (two scales of ten are ties; the first wins)."""
        count = len(self.phi)
        ticks = np.linspace(1 / 3 / count, 1 - 1 / 3 / count, count)
        return int(np.argmin(np.abs(ticks - scale / (len(self.scales) - 1))))

    def nearest_codes(self, cells: Tensor) -> Tensor:
        """Index of the nearest codebook row (Euclidean) of each cell: (M, c) to (M,)."""
        exact = exact_type(cells.device)  # rounded distances would pick other codes
        with torch.autocast(cells.device.type, enabled=False):
            cells, codebook = cells.to(exact), self.codebook.weight.to(exact)
            distance = (-2 * cells @ codebook.T).add_(codebook.square().sum(1))  # |cell|^2 is the same for every row
            return distance.argmin(1)

    def contribution(self, embedding: Tensor, scale: int) -> Tensor:
        """What one scale adds to f_hat: its code vectors (B, c, n_k, n_k) at full size, smoothed by phi."""
        embedding = embedding.float()
        if scale == len(self.scales) - 1:
            return embedding
        full = F.interpolate(embedding, size=(self.side, self.side), mode="bicubic")
        phi, exact = self.phi[self.phi_index(scale)], exact_type(full.device)
        with torch.autocast(full.device.type, enabled=False):
            smooth = F.conv2d(full.to(exact), phi.weight.to(exact), phi.bias.to(exact), padding=1).float()
        return (1 - PHI_RATIO) * full + PHI_RATIO * smooth

    def lookup(self, codes: Tensor, scale: int) -> Tensor:
        """Codes (B, n_k^2) of a scale to their vectors as a map (B, c, n_k, n_k)."""
        side = self.scales[scale]
        return self.codebook(codes).transpose(1, 2).unflatten(2, (side, side))

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """Teacher-forcing (and generation) input of a scale: f_hat area-resized, as tokens (B, n_k^2, c)."""
        side = self.scales[scale]
        return F.interpolate(f_hat, size=(side, side), mode="area").flatten(2).transpose(1, 2)

    def quantize_scale(self, rest: Tensor, scale: int) -> Tensor:
        """Codes (B, n_k^2) of what is left over (B, c, N, N) at one scale."""
        side = self.scales[scale]
        cells = rest if side == self.side else F.interpolate(rest, size=(side, side), mode="area")
        codes = self.nearest_codes(cells.permute(0, 2, 3, 1).flatten(0, 2))
        return codes.unflatten(0, (rest.shape[0], side * side))

    @torch.no_grad()
    def encode(self, latent: Tensor, error_rate: float = 0.0) -> Quantized:
        """Quantise a latent (B, c, N, N) scale by scale.

        error_rate: for training, how often at most a code is exchanged for another picture's (in a batch of one for
        any of the codebook) before the sum goes on (each picture and scale draws its own rate up to this). `codes` are
        then what corrects the errors so far, so that a model trained on them learns to recover from its own mistakes
        (the idea of Infinity, section 3.3).
        """
        rest = latent.float()
        f_hat = torch.zeros_like(rest)
        codes, inputs = [], []
        for scale in range(len(self.scales)):
            residual_last = rest
            codes.append(self.quantize_scale(rest, scale))
            used = codes[-1]
            if error_rate:
                rates = error_rate * torch.rand(len(used), 1, device=used.device)
                wrong = used.roll(1, 0) if len(used) > 1 else torch.randint_like(used, len(self.codebook.weight))
                used = torch.where(torch.rand(used.shape, device=used.device) < rates, wrong, used)
            added = self.contribution(self.lookup(used, scale), scale)
            f_hat, rest = f_hat + added, rest - added
            if scale + 1 < len(self.scales):
                inputs.append(self.next_input(f_hat, scale + 1))
        return Quantized(codes, f_hat, residual_last, torch.cat(inputs, dim=1))

    def forward(self, latent: Tensor, commitment: float, kept: Tensor | None = None,
                sum_: Callable[[Tensor], None] | None = None) -> tuple[Tensor, Tensor, Quantized]:
        """Training pass with straight-through gradients.

        latent: (B, c, N, N). kept: (B,) how many scales of each row are passed on; all by default. The losses are
        those of all scales in any case, so that leaving scales out teaches what reads the sum, not the codes.
        sum_: for training on several devices: puts the sum of all in the place of a tensor, for `code_usage`.
        Returns the straight-through f_hat, the codebook + commitment loss (mean over the scales, VQVAE eq. 3 at
        every scale) and the detached `Quantized`. `code_usage` follows as a moving average.
        """
        latent = latent.float()
        target = latent.detach()
        f_hat = passed_on = torch.zeros_like(target)
        codes, loss = [], latent.new_zeros(())
        for scale in range(len(self.scales)):
            residual_last = target - f_hat.detach()
            codes.append(self.quantize_scale(residual_last, scale))
            f_hat = f_hat + self.contribution(self.lookup(codes[-1], scale), scale)
            loss = loss + F.mse_loss(f_hat, target) + commitment * F.mse_loss(latent, f_hat.detach())
            whole = f_hat.detach()
            passed_on = whole if kept is None else torch.where((kept > scale)[:, None, None, None], whole, passed_on)
        self._count(codes, sum_)
        straight_through = latent + (passed_on - target)
        return straight_through, loss / len(self.scales), Quantized(codes, f_hat.detach(), residual_last)

    @torch.no_grad()
    def _count(self, codes: list[Tensor], sum_: Callable[[Tensor], None] | None) -> None:
        hits = torch.zeros_like(self.code_usage)
        for of_scale, flat in zip(hits, (each.flatten() for each in codes), strict=True):
            of_scale.scatter_add_(0, flat, of_scale.new_ones(()).expand(flat.shape))  # bincount has the host wait
        if sum_ is not None:
            sum_(hits)
        self.code_usage.lerp_(hits, 1 - USAGE_DECAY)

    @torch.no_grad()
    def revive_dead_codes(self, latent: Tensor, threshold: float, generator: torch.Generator | None = None) -> Tensor:
        """Move codes that are hit less than `threshold` times per step onto cells that the quantiser must express.

        The new places are residual cells of random scales of `latent` (B, c, N, N). Returns which codes moved (M,).
        """
        dead = torch.nonzero(self.code_usage.sum(0) < threshold).flatten()
        if not len(dead):
            return dead
        cells = torch.cat(self._residual_cells(latent.float()))
        chosen = torch.randint(len(cells), (len(dead),), generator=generator)
        self.codebook.weight[dead] = cells[chosen.to(cells.device)].to(self.codebook.weight.dtype)
        self.code_usage[:, dead] = 2 * threshold / len(self.scales)  # a grace period before the next judgement
        return dead

    @torch.no_grad()
    def fit_codes(self, latent: Tensor, generator: torch.Generator | None = None) -> None:
        """Start all codes on cells of a latent (B, c, N, N), and those that find no use on what the others leave over,
        instead of at random places, most of which no cell is near to."""
        nn.init.zeros_(self.codebook.weight)
        self.code_usage.zero_()
        for _ in range(FIT_ROUNDS):
            self.revive_dead_codes(latent, (1 - USAGE_DECAY) / 2, generator)  # those without a single hit
            self.code_usage.zero_()
            parts = [self.encode(part).codes for part in latent.split(FIT_PART)]
            self._count([torch.cat(of_scale) for of_scale in zip(*parts)], None)

    def _residual_cells(self, rest: Tensor) -> list[Tensor]:
        """The cells (M_k, c) that each scale has to quantise."""
        cells = []
        for scale, side in enumerate(self.scales):
            resized = F.interpolate(rest, size=(side, side), mode="area")
            cells.append(resized.permute(0, 2, 3, 1).flatten(0, 2))
            rest = rest - self.contribution(self.lookup(self.quantize_scale(rest, scale), scale), scale)
        return cells
