"""The degradation against NumPy, SciPy and Pillow: kernels, filtering, JPEG, and the whole."""
from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dataloader.degradation import Degradation, DegradationConfig
from dataloader.jpeg import CHROMINANCE, LUMINANCE, jpeg, quantization_tables
from dataloader.kernels import filter_each, gaussian_kernels, sinc_kernels

CANVAS = 21


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernels(size=21, sigma=(1.5, 1.5), rotation=0.0, beta=1.0, plateau=False) -> np.ndarray:
    values = [torch.tensor([value]) for value in (size, *sigma, rotation, beta, plateau)]
    return gaussian_kernels(CANVAS, *values)[0].double().numpy()


def scene(batch: int = 1, height: int = 64, width: int = 80) -> torch.Tensor:
    """Smooth coloured structure with edges, in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 8, width), indexing="ij")
    image = torch.stack([0.5 + 0.4 * torch.sin(x + y), 0.5 + 0.4 * torch.cos(2 * x), (x.floor() + y.floor()) % 2 * 0.8])
    image = image + 0.03 * torch.randn(image.shape, generator=generator(5))
    return image.clamp(0, 1).expand(batch, 3, height, width).clone()


def photograph(top: int, left: int, height: int = 64, width: int = 80) -> torch.Tensor:
    """A part of a photograph of the sample set: (1, 3, H, W) in [0, 1]."""
    file = Path(__file__).parent.parent / "testset/sample/HR/coffee.png"
    pixels = np.asarray(Image.open(file))[top:top + height, left:left + width]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


# ---- kernels

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


# ---- JPEG

def through_pillow(image: torch.Tensor, quality: int) -> tuple[np.ndarray, Image.Image]:
    """Levels after Pillow's JPEG, and the decoded file (with its tables)."""
    levels = image.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality)
    decoded = Image.open(buffer)
    return np.asarray(decoded.convert("RGB")).astype(float), decoded


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 95, 100])
@pytest.mark.parametrize("size", [(64, 80), (53, 71)])
def test_jpeg_is_close_to_pillow(quality, size):
    image = photograph(180, 380, *size)
    expected, decoded = through_pillow(image[0], quality)
    result = jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
    error = np.abs(result - expected).mean()
    loss = np.abs(image[0].permute(1, 2, 0).numpy() * 255 - expected).mean()
    assert error < 1 and error < 0.5 * loss
    for table, base in ((decoded.quantization[0], LUMINANCE), (decoded.quantization[1], CHROMINANCE)):
        ours = quantization_tables(base, torch.tensor([float(quality)]))[0]
        assert ours.flatten().int().tolist() == list(table)


def test_jpeg_quality_is_per_sample():
    images = scene(3)
    together = jpeg(images, torch.tensor([60.0, 80.0, 95.0]))
    for image, quality, result in zip(images, (60.0, 80.0, 95.0), together):
        torch.testing.assert_close(result, jpeg(image[None], torch.tensor([quality]))[0])


# ---- the whole

@pytest.mark.parametrize("light", [0.0, 1.0])
@pytest.mark.parametrize("size", [(64, 64), (72, 40), (50, 61)])
def test_output_size_range_and_levels(light, size):
    degrade = Degradation(DegradationConfig.load(light_probability=light))
    lr = degrade(torch.rand(6, 3, *size, generator=generator()), generator(1))
    assert lr.shape == (6, 3, size[0] // 4, size[1] // 4) and lr.dtype == torch.float32
    assert lr.min() >= 0 and lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-3, rtol=0)
    again = degrade.and_upsample(torch.rand(6, 3, *size), generator(1))
    assert again.shape == (6, 3, *size) and again.min() >= 0 and again.max() <= 1


def test_a_seed_decides_everything():
    degrade = Degradation()
    hr = scene(5)
    torch.rand(3)  # the global generator plays no part
    first = degrade(hr, generator(4))
    torch.rand(7)
    assert torch.equal(first, degrade(hr, generator(4)))
    assert not torch.equal(first, degrade(hr, generator(5)))
    assert torch.equal(degrade(hr.half(), generator(4)), degrade(hr.half().float(), generator(4)))


def test_samples_of_a_group_are_degraded_apart():
    """Equal pictures in, different pictures out, though they share their resizing steps."""
    lr = Degradation()(scene(4), generator(2))
    assert all(not torch.equal(lr[i], lr[j]) for i in range(4) for j in range(i))


def test_every_sample_has_its_own_sizes_with_groups_of_one():
    """Then a batch is the same as its samples one by one from the same generator."""
    degrade = Degradation(DegradationConfig.load(group=1))
    hr = scene(3)
    source = generator(6)
    torch.testing.assert_close(degrade(hr, generator(6)), torch.cat([degrade(image[None], source) for image in hr]))


def test_strength_is_moderate_and_light_is_lighter():
    """Mean difference from plain reduction, in levels: a light one is hardly seen, a full one keeps the picture."""
    hr = torch.cat([photograph(top, left) for top in range(0, 320, 80) for left in range(0, 480, 80)])
    plain = F.interpolate(hr, scale_factor=0.25, mode="area")

    def loss(light: float) -> float:
        degrade = Degradation(DegradationConfig.load(light_probability=light))
        return float((degrade(hr, generator(3)) - plain).abs().mean() * 255)
    assert 0.5 < loss(1.0) < 5 < loss(0.0) < 20


@pytest.mark.parametrize("gaussian", [1.0, 0.0])
def test_noise_has_the_configured_strength(gaussian):
    config = DegradationConfig.load()
    stage = dataclasses.replace(config.stage1, gaussian_noise_prob=gaussian, gaussian_sigma=(8, 8),
                                poisson_scale=(2, 2), gray_noise_prob=0.5)
    gray = torch.full((16, 3, 64, 64), 0.25)
    noise = Degradation(config)._noise(gray, stage, _draws(generator(1))) - gray
    expected = 8 / 255 if gaussian else 2 * (0.25 / 256) ** 0.5
    assert float(noise.std()) == pytest.approx(expected, rel=0.03)
    is_gray = (noise.std(dim=1) < 1e-6).flatten(1).all(1)
    assert 0 < int(is_gray.sum()) < 16


def _draws(source: torch.Generator):
    from dataloader.degradation import _Draws
    return _Draws(source)


def test_configuration_errors_are_explained(tmp_path):
    with pytest.raises(ValueError, match="surprise"):
        DegradationConfig.load(surprise=1)
    with pytest.raises(ValueError, match="light_probability"):
        DegradationConfig.load(light_probability=1.5)
    with pytest.raises(ValueError, match="nearest"):
        DegradationConfig.load(upsample_modes=("nearest",))
    with pytest.raises(ValueError, match="kernel_sizes"):
        DegradationConfig.load(kernel_sizes=[4])
    (tmp_path / "short.yml").write_text("scale: 4\n")
    with pytest.raises(ValueError, match="stage1"):
        DegradationConfig.load(tmp_path / "short.yml")


@pytest.mark.parametrize("hr", [torch.rand(3, 16, 16), torch.rand(1, 1, 16, 16), torch.zeros(1, 3, 16, 16).byte()])
def test_wrong_pictures_are_refused(hr):
    with pytest.raises(ValueError, match="expected pictures"):
        Degradation()(hr, generator())


def test_smaller_kernels_than_usual_work():
    assert Degradation(DegradationConfig.load(kernel_sizes=[7, 9]))(scene(), generator()).shape == (1, 3, 16, 20)
