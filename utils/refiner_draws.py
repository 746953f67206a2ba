"""The random part of the refiner's loss, decided by the seed and the numbers of the samples alone.

So a run resumes without saved generators, and two ranks with batches of b draw what one rank draws with 2b.
"""
from __future__ import annotations

import torch
from torch import Tensor

from dataloader.positions import Stream, generator_at
from models.config import VARSRConfig


def refiner_draws(config: VARSRConfig, seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Timesteps (repeats·B·N²,) and normal noise (repeats·B·N², c) of the samples first..first + count - 1.

    In the order that `DiffusionRefiner.loss` wants: the tokens of all samples, repeated as a block. On the CPU.
    """
    repeats, tokens, channels = config.refiner.repeats, config.vqvae.side ** 2, config.vqvae.latent_channels
    times, noise = [], []
    for position in range(first, first + count):
        generator = generator_at(seed, Stream.REFINER, position)
        times.append(torch.randint(config.refiner.train_steps, (repeats, tokens), generator=generator))
        noise.append(torch.randn(repeats, tokens, channels, generator=generator))
    return torch.stack(times, 1).flatten(), torch.stack(noise, 1).flatten(0, 2)
