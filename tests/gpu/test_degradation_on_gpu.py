"""The degradation on a GPU has the CPU's distribution: the same draws give the same pictures where there is no noise,
and noise is as strong."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from embedded import sample_lr
from torch import Tensor

import dataloader.kernels as kernels
from dataloader.degradation import Degradation, DegradationConfig, _Draws

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
PICTURES = ("cat", "coffee", "dogs", "fig")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(count: int) -> Tensor:
    """Parts of photographs (count, 3, 64, 64)."""
    parts = [sample_lr(name, left, top, 64, 64) for name in PICTURES for left in (0, 24, 48) for top in (0, 5, 10)]
    return torch.stack([parts[i % len(parts)] for i in range(count)])


@pytest.mark.parametrize("light", [0.0, 1.0])
def test_without_noise_it_is_the_cpus(light: float, device: torch.device, full_precision: None,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """The same choices from the same seed. Rounding to levels and to JPEG's coefficients lets a few blocks fall to the
    other side: GPUs filter by spectra, and so does the dry run, where 1.2 % of the levels are more than one apart."""
    monkeypatch.setattr(_Draws, "normal", lambda self, x: torch.zeros_like(x))
    degrade, hr = Degradation(DegradationConfig.load(light_probability=light)), photographs(64)
    expected = degrade.and_upsample(hr, generator(7))
    if device.type != "cuda":
        monkeypatch.setattr(kernels, "by_convolution", kernels.by_fourier)
    found = degrade.and_upsample(hr.to(device), generator(7)).cpu()
    apart = (found - expected).abs() * 255
    print(f"{(apart > 0.5).float().mean():.3%} of the levels differ, by {apart.mean():.4f} on average")
    assert (apart > 1.5).float().mean() < 0.05 and apart.mean() < 0.3


@pytest.mark.parametrize("settings", [
    {"gaussian_noise_prob": 1.0, "gaussian_sigma": (2, 20), "gray_noise_prob": 0.4},
    {"gaussian_noise_prob": 0.0, "poisson_scale": (0.5, 3), "gray_noise_prob": 0.4}])
def test_noise_is_as_strong(settings: dict, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and deviation of what is added to each picture. The draws before the noise are the same on both devices, so
    each sample has the same strength; of 64 x 64 normal numbers the deviation is known to 1.1 %, of a difference to
    half as much again, and 5 of such errors are allowed. The dry run draws other noise."""
    config = DegradationConfig.load()
    stage, plain = dataclasses.replace(config.stage1, **settings), torch.full((32, 3, 64, 64), 0.5)

    def added(where: torch.device) -> Tensor:
        there = plain.to(where)
        return (Degradation._noise(there, stage, _Draws(generator(11))) - there).cpu().double()
    here = added(CPU)
    if device.type != "cuda":
        other = generator(12)
        monkeypatch.setattr(_Draws, "normal", lambda self, x: torch.randn(x.shape, generator=other))
    there = added(device)
    for sample, other in zip(here, there, strict=True):
        spread, count = float(sample.std()), 64 * 64
        assert float(other.std()) == pytest.approx(spread, rel=5 * 1.5 / (2 * count) ** 0.5)
        assert abs(float(other.mean() - sample.mean())) < 5 * 1.5 * spread / count ** 0.5
        assert (sample.std(0) < 1e-6).all() == (other.std(0) < 1e-6).all()  # gray noise


def test_the_whole_has_the_same_distribution(device: torch.device) -> None:
    """Over many groups of samples that share sizes: mean level, contrast and roughness, to 4 standard errors."""
    degrade, hr = Degradation(), photographs(384)

    def measured(where: torch.device, seed: int) -> Tensor:
        lr = degrade(hr.to(where), generator(seed)).cpu()
        rough = (lr[..., 1:] - lr[..., :-1]).abs().mean((1, 2, 3))
        values = torch.stack([lr.mean((1, 2, 3)), lr.std((1, 2, 3)), rough], dim=1).double()
        return values.unflatten(0, (-1, degrade.config.group)).mean(1)
    here, there = measured(CPU, 1), measured(device, 2)
    error = ((here.var(0) + there.var(0)) / len(here)).sqrt()
    assert ((here.mean(0) - there.mean(0)).abs() < 4 * error).all()
