"""The degradation: its resizing and noise against Pillow, SciPy and theory, and the whole."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import no_waiting
from PIL import Image

from dataloader.degradation import Degradation, DegradationConfig, _Draws, _resize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(batch: int = 1, height: int = 64, width: int = 80) -> torch.Tensor:
    """Smooth coloured structure with edges, in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 8, width), indexing="ij")
    image = torch.stack([0.5 + 0.4 * torch.sin(x + y), 0.5 + 0.4 * torch.cos(2 * x), (x.floor() + y.floor()) % 2 * 0.8])
    image = image + 0.03 * torch.randn(image.shape, generator=generator(5))
    return image.clamp(0, 1).expand(batch, 3, height, width).clone()


def photograph(top: int, left: int, height: int = 64, width: int = 80) -> torch.Tensor:
    """A part of a photograph of the sample set: (1, 3, H, W) in [0, 1]."""
    file = Path(__file__).parents[2] / "testset/sample/HR/coffee.png"
    pixels = np.asarray(Image.open(file))[top:top + height, left:left + width]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


# ---- resizing

def levels(image: torch.Tensor) -> Image.Image:
    """One plane as a picture of floats, which Pillow does not round."""
    return Image.fromarray(image.numpy().astype(np.float32))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_area_is_pillows_reduction(factor):
    plane = torch.rand(24, 36, generator=generator())
    expected = np.asarray(levels(plane).reduce(factor))
    size = (24 // factor, 36 // factor)
    np.testing.assert_allclose(_resize(plane[None, None], size, "area")[0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(30, 50), (48, 41)])
def test_bilinear_enlargement_is_pillows(size):
    plane = torch.rand(24, 36, generator=generator())
    expected = np.asarray(levels(plane).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(_resize(plane[None, None], size, "bilinear")[0, 0].numpy(), expected, atol=1e-5)


def cubic(rows: int, size: int, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution as a matrix (size, rows), borders repeated, no low pass for reductions."""
    matrix = np.zeros((size, rows))
    for i in range(size):
        place = (i + 0.5) * rows / size - 0.5
        first = int(np.floor(place)) - 1
        for k in range(first, first + 4):
            x = abs(place - k)
            near, far = (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1, a * x ** 3 - 5 * a * x ** 2 + 8 * a * x - 4 * a
            matrix[i, min(max(k, 0), rows - 1)] += near if x <= 1 else far
    return matrix


@pytest.mark.parametrize("size", [(30, 50), (11, 19)])
def test_bicubic_is_cubic_convolution(size):
    plane = torch.rand(24, 36, generator=generator())
    expected = cubic(24, size[0]) @ plane.double().numpy() @ cubic(36, size[1]).T
    np.testing.assert_allclose(_resize(plane[None, None], size, "bicubic")[0, 0].numpy(), expected, atol=1e-5)


# ---- noise

def noise(gray: float, share: float = 0.5, count: int = 16, **settings) -> torch.Tensor:
    """What the noise step adds to a plain picture: (B, 3, 64, 64)."""
    config = DegradationConfig.load()
    stage = dataclasses.replace(config.stage1, gray_noise_prob=share, **settings)
    plain = torch.full((count, 3, 64, 64), gray)
    return Degradation(config)._noise(plain, stage, _Draws(generator(1))) - plain


@pytest.mark.parametrize("gaussian", [1.0, 0.0])
def test_noise_has_the_configured_strength(gaussian):
    added = noise(0.25, gaussian_noise_prob=gaussian, gaussian_sigma=(8, 8), poisson_scale=(2, 2))
    expected = 8 / 255 if gaussian else 2 * (0.25 / 256) ** 0.5
    assert float(added.std()) == pytest.approx(expected, rel=0.03)
    is_gray = (added.std(dim=1) < 1e-6).flatten(1).all(1)
    assert 0 < int(is_gray.sum()) < 16


@pytest.mark.parametrize("gray", [0.1, 0.4, 0.7])
def test_shot_noise_is_nearly_poissons(gray):
    """Mean, deviation and quantiles of counts of 256 at white; a count is the law's own step."""
    stats = pytest.importorskip("scipy.stats")
    added = noise(gray, share=0.0, gaussian_noise_prob=0.0, poisson_scale=(1, 1)).flatten().double() * 256
    law = stats.poisson(256 * gray)
    assert float(added.mean()) == pytest.approx(0, abs=0.15)
    assert float(added.std()) == pytest.approx(law.std(), rel=0.02)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert float(added.quantile(share)) == pytest.approx(law.ppf(share) - law.mean(), abs=1)


def test_gaussian_noise_is_normal_and_uncorrelated():
    stats = pytest.importorskip("scipy.stats")
    added = noise(0.5, share=0.0, count=4, gaussian_noise_prob=1.0, gaussian_sigma=(10, 10)).double() * 255 / 10
    assert stats.kstest(added.flatten().numpy()[::3], "norm").pvalue > 0.001
    for other in (added.roll(1, 3), added.roll(1, 2), added.roll(1, 1)):  # the neighbours, the next channel
        assert abs(float((added * other).mean())) < 0.03


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


@pytest.mark.gpu
def test_a_gpu_never_waits_for_the_host_and_repeats_itself(device):
    degrade = Degradation(DegradationConfig.load(light_probability=0.3))
    hr = scene(8).to(device)
    first = degrade.and_upsample(hr, generator(4))  # constants are copied now
    with no_waiting(device):
        again = degrade.and_upsample(hr, generator(4))
    assert torch.equal(first, again)
