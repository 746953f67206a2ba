"""The refiner of the quantisation residual: a short Gaussian diffusion on single cells, and its denoising network.

Cosine schedule, ε-prediction, learned-range variance: Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic
Models" (sections 3.1, 3.2, 3.3 for the variance, the schedule and the respacing); Ho et al. (2020) for the posterior.
Schedules are kept in float64 and applied in float32.
"""
from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Replace
from .config import RefinerConfig

MAX_BETA = 0.999
COSINE_OFFSET = 0.008
DATA_BIN = 1 / 255  # half width of a bin of the discretised likelihood at t = 0
DATA_EDGE = 0.999  # beyond it the outermost bins reach to infinity
LOG_FLOOR = 1e-12
NORM_EPS = 1e-6
TIME_CHANNELS = 256
MAX_PERIOD = 10000.0


def cosine_alphas(steps: int) -> np.ndarray:
    """Cumulative ᾱ_t of t = 0..steps-1, with every β clipped at 0.999."""
    def alpha_bar(time: np.ndarray) -> np.ndarray:
        return np.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    edges = alpha_bar(np.arange(steps + 1) / steps)
    return np.cumprod(1 - np.minimum(1 - edges[1:] / edges[:-1], MAX_BETA))


class GaussianDiffusion:
    """A diffusion over the given `timesteps` of a cosine schedule of `train_steps` steps."""

    def __init__(self, train_steps: int, timesteps: np.ndarray | None = None) -> None:
        self.timesteps = np.arange(train_steps) if timesteps is None else timesteps
        alphas = cosine_alphas(train_steps)[self.timesteps]
        before = np.append(1.0, alphas[:-1])
        betas = 1 - alphas / before
        posterior = betas * (1 - before) / (1 - alphas)
        self.tables = {name: torch.from_numpy(values).float() for name, values in {
            "sqrt_alpha": np.sqrt(alphas),
            "sqrt_noise": np.sqrt(1 - alphas),
            "x0_from_x": np.sqrt(1 / alphas),
            "x0_from_noise": np.sqrt(1 / alphas - 1),
            "mean_from_x0": betas * np.sqrt(before) / (1 - alphas),
            "mean_from_x": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
            "log_beta": np.log(betas),
            "log_posterior": np.log(np.append(posterior[1], posterior[1:])),  # β̃_0 is 0: use its neighbour
        }.items()}
        self._copies: dict[tuple[str, torch.device], Tensor] = {}

    @classmethod
    def respaced(cls, train_steps: int, sampling_steps: int) -> GaussianDiffusion:
        """The same process in fewer, evenly spread steps that include the first and the last."""
        return cls(train_steps, np.round(np.linspace(0, train_steps - 1, sampling_steps)).astype(int))

    def _at(self, name: str, index: Tensor | int, device: torch.device) -> Tensor | float:
        if isinstance(index, int):
            return self.tables[name][index].item()  # a number of the host: sampling waits for no copy
        if (name, device) not in self._copies:  # once: the host waits for a copy
            self._copies[name, device] = self.tables[name].to(device)
        return self._copies[name, device][index, None]

    def add_noise(self, x0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """x_t of the forward process; x0, noise: (M, c), index: (M,)."""
        return self._at("sqrt_alpha", index, x0.device) * x0 + self._at("sqrt_noise", index, x0.device) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, index: Tensor | int) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x0)."""
        return self._at("mean_from_x0", index, x.device) * x0 + self._at("mean_from_x", index, x.device) * x

    def predicted_x0(self, x: Tensor, noise: Tensor, index: Tensor | int) -> Tensor:
        """x0 that x_t and the predicted noise imply."""
        return self._at("x0_from_x", index, x.device) * x - self._at("x0_from_noise", index, x.device) * noise

    def log_variance(self, raw: Tensor, index: Tensor | int) -> Tensor:
        """The network's variance output (-1..1) between the posterior's log-variance and log β."""
        share = (raw + 1) / 2
        low, high = self._at("log_posterior", index, raw.device), self._at("log_beta", index, raw.device)
        return share * high + (1 - share) * low

    def step(self, x: Tensor, noise: Tensor, raw_variance: Tensor, index: int, fresh: Tensor | None) -> Tensor:
        """x_{t-1} from x_t; x0 clipped to [-1, 1]; `fresh` noise, none at step 0."""
        x0 = self.predicted_x0(x, noise, index).clamp(-1, 1)
        mean = self.posterior_mean(x0, x, index)
        if index == 0 or fresh is None:
            return mean
        return mean + torch.exp(0.5 * self.log_variance(raw_variance, index)) * fresh

    def training_loss(self, x0: Tensor, x: Tensor, index: Tensor, noise: Tensor, predicted: Tensor,
                      raw_variance: Tensor) -> Tensor:
        """MSE of ε plus the variational bound that trains the variance; per token (M,).

        In the bound the ε output is detached: it must not be pulled by it.
        """
        mse = (predicted - noise).square().mean(-1)
        return mse + self._bound(x0, x, index, predicted.detach(), raw_variance)

    def _bound(self, x0: Tensor, x: Tensor, index: Tensor, predicted: Tensor, raw_variance: Tensor) -> Tensor:
        """KL(q || p) in bits per channel, or the discretised negative log-likelihood at t = 0."""
        true_mean = self.posterior_mean(x0, x, index)
        true_log_variance = self._at("log_posterior", index, x.device)
        mean = self.posterior_mean(self.predicted_x0(x, predicted, index), x, index)
        log_variance = self.log_variance(raw_variance, index)
        kl = 0.5 * (log_variance - true_log_variance - 1 + torch.exp(true_log_variance - log_variance)
                    + (true_mean - mean).square() * torch.exp(-log_variance))
        likelihood = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        return torch.where(index == 0, likelihood.mean(-1), kl.mean(-1)) / math.log(2)


def _normal_cdf(x: Tensor) -> Tensor:
    """tanh approximation of the standard normal's distribution function, which the published loss uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability of the bin of width 2/255 around x under a Gaussian (Ho et al., section 3.3)."""
    inverse_std = torch.exp(-log_std)
    upper = _normal_cdf(inverse_std * (x - mean + DATA_BIN))
    lower = _normal_cdf(inverse_std * (x - mean - DATA_BIN))
    inside = torch.where(x > DATA_EDGE, 1 - lower, upper - lower)
    return torch.where(x < -DATA_EDGE, upper, inside).clamp(min=LOG_FLOOR).log()


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

    def replace_linears(self, replace: Replace) -> None:
        """For inference: put other layers in place of the linear ones."""
        self.modulation = replace(self.modulation)
        self.mlp = nn.Sequential(replace(self.mlp[0]), self.mlp[1], replace(self.mlp[2]))


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

    def replace_linears(self, replace: Replace) -> None:
        """For inference: put other layers in place of those linear ones that do the work."""
        for block in self.blocks:
            block.replace_linears(replace)
        self.output_modulation = replace(self.output_modulation)

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
