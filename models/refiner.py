"""Diffusion refiner (VARSR, section 3.4): samples what the last scale's codes could not say, token by token."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import RefinerConfig
from .diffusion import GaussianDiffusion

NORM_EPS = 1e-6
TIME_CHANNELS = 256
MAX_PERIOD = 10000.0


def time_features(times: Tensor) -> Tensor:
    """Sinusoidal features of timesteps (M,): cosines, then sines, (M, 256) float32."""
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=times.device))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class RefinerBlock(nn.Module):
    """Residual MLP on one token, modulated and gated by its condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(torch.addcmul(shift, self.norm(x), 1 + scale))


class DiffusionRefiner(nn.Module):
    """Denoising network on single tokens and the diffusion around it.

    Works on tokens (M, c) of the residual latent, conditioned on (M, C) transformer features.
    """

    def __init__(self, config: RefinerConfig, channels: int, condition_width: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        width = config.width
        self.condition_norm = nn.LayerNorm(condition_width, eps=NORM_EPS)
        self.time_embedding = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_embedding = nn.Linear(condition_width, width)
        self.input = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(RefinerBlock(width) for _ in range(config.depth))
        self.output_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, 2 * channels)
        self.training_diffusion = GaussianDiffusion(config.train_steps)

    def condition(self, hidden: Tensor) -> Tensor:
        """The part of the condition that is the same at every timestep: (M, C) features to (M, W)."""
        return self.condition_embedding(self.condition_norm(hidden.to(self.condition_embedding.weight.dtype)))

    def network(self, x: Tensor, times: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy tokens (M, c), timesteps (M,) or (1,), condition (M, W) to noise and raw variance, float32."""
        dtype = self.input.weight.dtype
        y = F.silu(self.time_embedding(time_features(times).to(dtype)) + condition)
        h = self.input(x.to(dtype))
        for block in self.blocks:
            h = block(h, y)
        shift, scale = self.output_modulation(y).chunk(2, dim=-1)
        h = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=NORM_EPS), 1 + scale)
        noise, raw_variance = self.output(h).float().chunk(2, dim=-1)
        return noise, raw_variance

    def sample(self, hidden: Tensor, unconditional: Tensor | None, guidance: float, initial: Tensor,
               fresh: Tensor) -> Tensor:
        """Residual latent of each token, (M, c) float32.

        hidden, unconditional: (M, C) features of the conditional and (with guidance) unconditional rows;
        initial: (M, c) and fresh: (steps, M, c), standard normal noise in the order of use; it decides the number of
        steps.
        """
        rows = hidden if unconditional is None else torch.cat([hidden, unconditional])
        condition = self.condition(rows)
        diffusion, x = GaussianDiffusion.respaced(self.config.train_steps, len(fresh)), initial
        for used, index in enumerate(reversed(range(len(diffusion.timesteps)))):
            times = torch.full((1,), float(diffusion.timesteps[index]), device=x.device)
            both = x if unconditional is None else torch.cat([x, x])
            noise, raw_variance = self.network(both, times, condition)
            if unconditional is not None:
                noise = (1 + guidance) * noise[:len(x)] - guidance * noise[len(x):]
            x = diffusion.step(x, noise, raw_variance[:len(x)], index, fresh[used])
        return x * self.config.residual_scale

    def loss(self, residual: Tensor, hidden: Tensor, times: Tensor | None = None,
             noise: Tensor | None = None) -> Tensor:
        """Mean denoising loss; every token is used `repeats` times with its own timestep and noise.

        residual: (M, c) true residual latent; hidden: (M, C). `times` (repeats·M,) and `noise` (repeats·M, c)
        replace the random draws (the token list repeated as a block).
        """
        repeats = self.config.repeats
        x0 = (residual.float() / self.config.residual_scale).repeat(repeats, 1)
        if times is None:
            times = torch.randint(self.config.train_steps, (len(x0),), device=x0.device)
        if noise is None:
            noise = torch.randn_like(x0)
        x = self.training_diffusion.add_noise(x0, times, noise)
        condition = self.condition(hidden).repeat(repeats, 1)
        predicted, raw_variance = self.network(x, times, condition)
        return self.training_diffusion.training_loss(x0, x, times, noise, predicted, raw_variance).mean()
