"""The refiner's diffusion: exact identities of Gaussian diffusions, and recovery of a known distribution."""
from __future__ import annotations

import math

import numpy as np
import torch

from models.config import RefinerConfig
from models.refiner import DiffusionRefiner, GaussianDiffusion, cosine_alphas, discretized_log_likelihood, time_features


def test_respaced_steps_of_the_spec() -> None:
    assert GaussianDiffusion.respaced(1000, 10).timesteps.tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]


def test_cosine_schedule_away_from_the_clip() -> None:
    t = np.arange(1, 900) / 1000
    expected = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(cosine_alphas(1000)[:899], expected, rtol=1e-10)


def test_x0_from_the_true_noise_is_x0() -> None:
    diffusion = GaussianDiffusion(1000)
    x0, noise, index = torch.rand(6, 4) * 2 - 1, torch.randn(6, 4), torch.tensor([0, 5, 100, 400, 700, 900])
    x = diffusion.add_noise(x0, index, noise)
    torch.testing.assert_close(diffusion.predicted_x0(x, noise, index), x0, atol=2e-4, rtol=1e-3)


def test_sampling_with_the_exact_noise_ends_at_the_data() -> None:
    """A network that knows x0 must be led to it, whatever the fresh noise."""
    diffusion = GaussianDiffusion.respaced(1000, 10)
    x0 = torch.rand(5, 3) * 1.6 - 0.8
    x = torch.randn(5, 3)
    for index in reversed(range(10)):
        alpha = diffusion.tables["sqrt_alpha"][index]
        noise = (x - alpha * x0) / diffusion.tables["sqrt_noise"][index]
        x = diffusion.step(x, noise, torch.zeros_like(x), index, torch.randn(5, 3))
    torch.testing.assert_close(x, x0, atol=1e-4, rtol=0)


def test_bound_vanishes_for_the_true_posterior() -> None:
    diffusion = GaussianDiffusion(1000)
    x0, noise, index = torch.rand(4, 3), torch.randn(4, 3), torch.tensor([10, 200, 500, 800])
    x = diffusion.add_noise(x0, index, noise)
    loss = diffusion.training_loss(x0, x, index, noise, noise, torch.full_like(x, -1.0))  # -1: posterior variance
    assert loss.abs().max() < 1e-4


def test_discretized_likelihood_sums_to_one() -> None:
    bins = torch.linspace(-1, 1, 256)
    total = discretized_log_likelihood(bins, torch.tensor(0.1), torch.tensor(math.log(0.3))).exp().sum()
    assert abs(total.item() - 1) < 1e-3


def test_time_features_are_cosines_then_sines() -> None:
    features = time_features(torch.tensor([3.0]))[0]
    assert features.shape == (256,)
    assert abs(features[0].item() - math.cos(3)) < 1e-6 and abs(features[128].item() - math.sin(3)) < 1e-6


def test_guided_sampling_equals_the_formula_on_two_separate_runs() -> None:
    torch.manual_seed(0)
    refiner = DiffusionRefiner(RefinerConfig(width=16, depth=1, sampling_steps=4), 3, 8).requires_grad_(False)
    for parameter in refiner.parameters():
        parameter.normal_(std=0.3)
    cond, uncond, initial, fresh = (torch.randn(*s) for s in ((5, 8), (5, 8), (5, 3), (4, 5, 3)))
    x, diffusion = initial, GaussianDiffusion.respaced(refiner.config.train_steps, 4)
    for used, index in enumerate(reversed(range(4))):
        time = torch.tensor([float(diffusion.timesteps[index])])
        noise_c, variance = refiner.network(x, time, refiner.condition(cond))
        noise_u, _ = refiner.network(x, time, refiner.condition(uncond))
        x = diffusion.step(x, 3 * noise_c - 2 * noise_u, variance, index, fresh[used])
    torch.testing.assert_close(refiner.sample(cond, uncond, 2.0, initial, fresh), 0.6 * x)
