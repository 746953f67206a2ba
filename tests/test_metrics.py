"""Metrics against scikit-image."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from utils.metrics import LearnedMetrics, luma, psnr_y, ssim_y


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(3, 48, 64, generator=generator)
    image = (torch.nn.functional.avg_pool2d(image[None], 5, 1, 2)[0] * 255).round() / 255
    noisy = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    return (noisy * 255).round() / 255, image


def numpy_y(image: torch.Tensor) -> np.ndarray:
    return rgb2ycbcr(image.permute(1, 2, 0).double().numpy())[..., 0]


def test_luma_is_studio_range_bt601() -> None:
    image, _ = pair()
    np.testing.assert_allclose(luma(image).numpy(), numpy_y(image), atol=1e-3)


def test_psnr_equals_scikit_image() -> None:
    image, reference = pair()
    expected = peak_signal_noise_ratio(numpy_y(reference), numpy_y(image), data_range=255)
    assert psnr_y(image, reference) == pytest.approx(expected, abs=1e-4)
    assert psnr_y(image, image) == math.inf


def test_ssim_equals_scikit_image() -> None:
    image, reference = pair()
    _, full = structural_similarity(numpy_y(reference), numpy_y(image), data_range=255, gaussian_weights=True,
                                    sigma=1.5, use_sample_covariance=False, full=True)
    assert ssim_y(image, reference) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)
    assert ssim_y(image, image) == pytest.approx(1.0)


def test_sizes_are_checked() -> None:
    image, reference = pair()
    with pytest.raises(ValueError, match="differ in size"):
        psnr_y(image[:, 1:], reference)
    with pytest.raises(ValueError, match="11x11"):
        ssim_y(image[:, :8, :8], reference[:, :8, :8])


def test_without_pyiqa_there_are_no_learned_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert LearnedMetrics(torch.device("cpu")).measure(*pair()) == {}
