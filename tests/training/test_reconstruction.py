"""Measuring a tokenizer: per scale, against scikit-image, and codebook use by hand."""
from __future__ import annotations

import pytest
import torch
from conftest import small_model
from skimage.metrics import peak_signal_noise_ratio

from evaluation.metrics.full_reference import ssim_y
from training.tokenizer import codebook_use, reconstruct


def test_every_scale_is_measured() -> None:
    model = small_model().vqvae
    pictures = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = reconstruct(model, pictures, "fp32", batch_size=2, shown=3)
    assert [tuple(row.shape) for row in result.rows] == [(3, 3, 32, 32)] * 5  # pictures, three scales, continuous
    latent = model.encode(pictures)
    f_hat = model.quantizer.encode(latent).f_hat
    for name, decoded in (("4", model.decode(f_hat)), ("continuous", model.decode(latent))):
        psnr = peak_signal_noise_ratio(pictures.numpy(), decoded.numpy(), data_range=2)
        assert result.values[f"psnr_{name}"] == pytest.approx(psnr, abs=1e-4)
        ssim = [ssim_y((a + 1) / 2, (b + 1) / 2) for a, b in zip(decoded, pictures)]
        assert result.values[f"ssim_{name}"] == pytest.approx(sum(ssim) / 5, abs=1e-4)
    torch.testing.assert_close(result.rows[3], model.decode(f_hat)[:3])
    codes = torch.cat([part.flatten() for part in model.tokenize(pictures)])
    assert result.values["codes_used"] == len(codes.unique())


def test_codebook_use_by_hand() -> None:
    assert codebook_use(torch.arange(8).repeat(5), 100) == {"codes_used": 8, "perplexity": pytest.approx(8)}
    assert codebook_use(torch.zeros(7, dtype=torch.long), 4) == {"codes_used": 1, "perplexity": pytest.approx(1)}
    three_to_one = codebook_use(torch.tensor([0, 0, 0, 1]), 2)["perplexity"]
    assert three_to_one == pytest.approx(4 / 3 ** 0.75)
