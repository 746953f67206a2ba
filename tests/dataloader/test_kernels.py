"""Blur kernels and filtering against NumPy and SciPy."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataloader.kernels import by_convolution, by_fourier, filter_each, gaussian_kernels, sinc_kernels

CANVAS = 21


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernels(size=21, sigma=(1.5, 1.5), rotation=0.0, beta=1.0, plateau=False) -> np.ndarray:
    values = [torch.tensor([value]) for value in (size, *sigma, rotation, beta, plateau)]
    return gaussian_kernels(CANVAS, *values)[0].double().numpy()


@pytest.mark.parametrize("sigma, rotation",
                         [((1.0, 1.0), 0.3), ((2.5, 0.8), 0.0), ((2.5, 0.8), 0.7), ((1.2, 2.0), -2.0)])
def test_gaussian_has_the_moments_it_should(sigma, rotation):
    """The covariance of a rotated Gaussian is R diag(sigma^2) R^T."""
    kernel = kernels(sigma=sigma, rotation=rotation)
    axis = np.arange(CANVAS) - CANVAS // 2
    dx, dy = np.meshgrid(axis, axis)
    covariance = np.array([[(kernel * dx * dx).sum(), (kernel * dx * dy).sum()],
                           [(kernel * dx * dy).sum(), (kernel * dy * dy).sum()]])
    turn = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(covariance, turn @ np.diag(np.square(sigma)) @ turn.T, atol=0.02)


def test_gaussian_equals_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.zeros((CANVAS, CANVAS))
    impulse[CANVAS // 2, CANVAS // 2] = 1
    expected = ndimage.gaussian_filter(impulse, (2.0, 1.1), mode="constant", truncate=12)
    np.testing.assert_allclose(kernels(sigma=(1.1, 2.0)), expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize("beta, plateau", [(0.5, False), (4.0, False), (1.0, True), (2.0, True)])
def test_generalized_and_plateau_shapes(beta, plateau):
    axis = np.arange(CANVAS) - CANVAS // 2
    q = (axis[None, :] ** 2 + axis[:, None] ** 2) / 1.5 ** 2
    expected = 1 / (1 + q ** beta) if plateau else np.exp(-0.5 * q ** beta)
    np.testing.assert_allclose(kernels(beta=beta, plateau=plateau), expected / expected.sum(), atol=1e-6)


def test_small_kernels_are_zero_outside_their_size():
    kernel = kernels(size=7, sigma=(3.0, 3.0))
    assert kernel[7:14, 7:14].sum() == pytest.approx(1, abs=1e-6) and kernel[6].sum() == kernel[:, 14].sum() == 0


def test_sinc_equals_scipy_and_cuts_off():
    special = pytest.importorskip("scipy.special")
    cutoff = 1.3
    kernel = sinc_kernels(CANVAS, torch.tensor([21]), torch.tensor([cutoff]))[0].double().numpy()
    axis = np.arange(CANVAS) - CANVAS // 2
    radius = np.hypot(axis[None, :], axis[:, None])
    with np.errstate(invalid="ignore"):
        expected = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
    expected[radius == 0] = cutoff ** 2 / (4 * np.pi)
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-6)
    response = np.abs(np.fft.fft2(kernel, (64, 64)))[0]
    frequency = 2 * np.pi * np.arange(33) / 64
    assert response[:33][frequency < 0.8].min() > 0.8 and response[:33][frequency > 1.9].max() < 0.2


def test_filtering_equals_scipy_per_sample():
    ndimage = pytest.importorskip("scipy.ndimage")
    images = torch.rand(2, 3, 30, 41, generator=generator(1))
    weights = torch.rand(2, CANVAS, CANVAS, generator=generator(2))
    filtered = filter_each(images, weights)
    for image, weight, result in zip(images, weights, filtered):
        for channel in range(3):
            expected = ndimage.correlate(image[channel].numpy(), weight.numpy(), mode="mirror")
            np.testing.assert_allclose(result[channel].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [(23, 60), (64, 64), (77, 31)])
def test_filtering_by_spectra_is_filtering(size):
    padded = F.pad(torch.rand(3, 3, *size, generator=generator(1)), (CANVAS // 2,) * 4, mode="reflect")
    weights = torch.randn(3, CANVAS, CANVAS, generator=generator(2))
    torch.testing.assert_close(by_fourier(padded, weights), by_convolution(padded, weights), atol=2e-4, rtol=1e-4)


@pytest.mark.gpu
def test_a_gpu_filters_alike(device):
    images, weights = torch.rand(2, 3, 40, 50, generator=generator(1)), torch.rand(2, CANVAS, CANVAS) / CANVAS ** 2
    filtered = filter_each(images.to(device), weights).cpu()
    torch.testing.assert_close(filtered, filter_each(images, weights), atol=1e-5, rtol=0)
