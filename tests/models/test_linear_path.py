"""The tokenizer's linear path against a singular value decomposition, and what starts from it."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import PRESETS, ConfigError
from models.vqvae import VQVAE, LinearPath

DEBUG = dataclasses.replace(PRESETS["varsr-debug"].vqvae, linear_path=True)  # 32x32 pixels, factor 8, 8 channels


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth pictures (40, 3, 32, 32) in [-1, 1], correlated in colour, with some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(40, 3, 6, 6, generator=generator)
    coarse = 0.3 * coarse + 0.7 * coarse.mean(1, keepdim=True) + torch.tensor([0.2, 0.0, -0.1]).view(3, 1, 1)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    return (0.4 * smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


def blocks(pictures: Tensor, side: int) -> np.ndarray:
    """All blocks of pictures, a row each."""
    count, colours, height, width = pictures.shape
    cut = pictures.numpy().reshape(count, colours, height // side, side, width // side, side)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, colours * side * side)


@pytest.mark.parametrize(("factor", "channels"), [(8, 8), (4, 3)])
def test_no_linear_map_loses_less(pictures: Tensor, factor: int, channels: int) -> None:
    path = LinearPath(factor, channels)
    path.fit(pictures)
    with torch.no_grad():
        decoded = path.synthesis(path.analysis(pictures))
    rows = blocks(pictures, factor).astype(np.float64)
    mean = np.repeat(rows.reshape(len(rows), 3, -1).mean((0, 2)), factor ** 2)
    singular = np.linalg.svd(rows - mean, compute_uv=False)
    assert float((decoded - pictures).square().sum()) == pytest.approx((singular[channels:] ** 2).sum(), rel=1e-3)


def test_distances_of_latents_are_those_of_pixels(pictures: Tensor) -> None:
    path = LinearPath(8, 8)
    path.fit(pictures)
    with torch.no_grad():
        latent = path.analysis(pictures)
        decoded = path.synthesis(latent)
    assert float(latent.square().mean()) == pytest.approx(1, rel=1e-3)
    of_latents = (latent[:20] - latent[20:]).square().sum((1, 2, 3))
    of_pixels = (decoded[:20] - decoded[20:]).square().sum((1, 2, 3))
    torch.testing.assert_close(of_pixels / of_latents, (of_pixels / of_latents).mean().expand(20), rtol=1e-3, atol=0)


def test_a_fitted_tokenizer_begins_as_the_linear_one(pictures: Tensor) -> None:
    torch.manual_seed(0)
    model = VQVAE(DEBUG).eval()
    model.fit(pictures, torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = model.decode_unclamped(model.encode(pictures))
        expected = model.linear_path.synthesis(model.linear_path.analysis(pictures))
    torch.testing.assert_close(decoded, expected)


def test_fitted_codes_are_used_and_say_more_than_random_ones(pictures: Tensor) -> None:
    torch.manual_seed(0)
    model = VQVAE(DEBUG).eval()
    model.fit(pictures, torch.Generator().manual_seed(0))
    latent = model.encode(pictures).detach()
    fitted = model.quantizer.encode(latent)
    assert len(torch.cat(fitted.codes, dim=1).unique()) > DEBUG.vocab_size // 2
    with torch.no_grad():
        model.quantizer.codebook.weight.normal_()
    random = model.quantizer.encode(latent)
    assert (fitted.f_hat - latent).square().mean() < 0.75 * (random.f_hat - latent).square().mean()


def test_without_its_encoder_a_tokenizer_decodes_the_same(pictures: Tensor) -> None:
    model = VQVAE(DEBUG).eval()
    model.fit(pictures)
    latent = model.encode(pictures[:2]).detach()
    before = model.decode(latent)
    model.drop_encoder()
    assert not any("analysis" in name for name in model.state_dict())
    torch.testing.assert_close(model.decode(latent), before)


def test_more_channels_than_a_block_has_components_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 latent_channels"):
        dataclasses.replace(DEBUG, stem=1, multipliers=(1,))


def test_features_of_the_lr_picture_can_be_silenced() -> None:
    torch.manual_seed(0)
    model = VQVAE(dataclasses.replace(DEBUG, fidelity_width=8, fidelity_blocks=1, fidelity_pixels=4)).eval()
    for parameter in model.fidelity.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    latent, lr = torch.randn(1, 8, 4, 4), torch.rand(1, 3, 32, 32) * 2 - 1
    assert not torch.allclose(model.decode(latent, lr), model.decode(latent), atol=1e-3)
    model.fidelity.silence()
    torch.testing.assert_close(model.decode(latent, lr), model.decode(latent))
