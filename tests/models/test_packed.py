"""Packed and 8-bit linears against PyTorch's own in float64, and whole generations with them."""
from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import small_model

from models.config import GenerationConfig
from models.speed.packed import (
    SEVEN_BITS,
    PackedLinear,
    QuantizedLinear,
    exact_levels,
    pack,
    packing_works,
    quantize_tokens,
)
from models.varsr import VARSR, ScaleStep
from models.weights.save import save_pretrained

pytestmark = pytest.mark.skipif(not packing_works(), reason="this PyTorch packs no weights")
needs_bf16 = pytest.mark.skipif(not packing_works(torch.bfloat16), reason="this processor has no bf16 products")
TYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)]
EXACT = exact_levels() or 0
needs_int8 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="8-bit products are for x86")
WEIGHTS = [SEVEN_BITS, pytest.param(127, marks=pytest.mark.skipif(EXACT < 127, reason="this processor has no VNNI"))]


def layer(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs ** 0.5
    return weight.to(dtype), torch.randn(outputs, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_packed_is_the_same_linear(tokens: int, dtype: torch.dtype) -> None:
    weight, bias = layer(48, 80, dtype)
    x = torch.randn(2, tokens, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = F.linear(x.double(), weight.double(), bias.double())
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
    torch.testing.assert_close(PackedLinear(weight, bias)(x).double(), exact, **tolerance)
    activated = F.gelu(exact, approximate="tanh")
    torch.testing.assert_close(PackedLinear(weight, bias, gelu=True)(x).double(), activated, **tolerance)


@needs_int8
@pytest.mark.parametrize("levels", WEIGHTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_8_bit_products_are_those_of_the_rounded_factors(dtype: torch.dtype, levels: int) -> None:
    """Exact integer arithmetic on what rounding leaves: computed here in float64."""
    weight, bias = layer(48, 80, dtype)
    x = 3 * torch.randn(5, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens, token_scales = quantize_tokens(x)
    steps = weight.double().abs().amax(1) / levels
    rounded = (weight.double() / steps[:, None]).round() * steps[:, None]
    factors = (tokens.double() - 128) * token_scales.double()
    assert (factors - x.double()).abs().max() <= 0.51 * token_scales.double().max()
    expected = F.linear(factors, rounded, bias.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    found = QuantizedLinear(weight, bias, levels=levels)(x).double()
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@needs_int8
def test_the_largest_factors_do_not_overflow() -> None:
    assert EXACT in (127, SEVEN_BITS)
    for sign in (1.0, -1.0):
        product = QuantizedLinear(torch.full((80, 48), sign), None, levels=EXACT)(torch.ones(5, 48))
        torch.testing.assert_close(product, torch.full((5, 80), 48 * sign))


@needs_int8
def test_a_token_of_zeros_and_one_far_larger_than_its_neighbours() -> None:
    weight, bias = layer(48, 80, torch.float32)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    quantized = QuantizedLinear(weight, bias, levels=EXACT)
    alone = quantized(x[2:])
    x[0], x[1] = 0, 1e6 * x[1]
    together = quantized(x)
    torch.testing.assert_close(together[0], bias)
    torch.testing.assert_close(together[2:], alone)


def steps_of(model: VARSR, pictures: torch.Tensor) -> tuple[torch.Tensor, list[ScaleStep]]:
    steps: list[ScaleStep] = []
    latent = model.generate_latent(pictures, options=GenerationConfig(cfg=1.0), on_scale=steps.append)
    return model.decode(latent, pictures), steps


def test_a_packed_model_gives_the_same_pictures(weights: Path, pictures: torch.Tensor) -> None:
    """From a folder, whose mapped memory packing gives back."""
    model = VARSR.from_pretrained(weights)
    expected, _ = steps_of(model, pictures)
    packed, _ = steps_of(pack(model.for_inference()), pictures)
    kept = [name for name in model.state_dict() if name.startswith("transformer.blocks")]
    assert not [name for name in kept if not name.endswith("log_scale")]
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=0)


@needs_int8
def test_an_8_bit_model_is_close(pictures: torch.Tensor) -> None:
    model = small_model()
    _, expected = steps_of(model, pictures)
    _, found = steps_of(pack(model.for_inference(), "int8"), pictures)
    error = (found[0].logits - expected[0].logits).norm() / expected[0].logits.norm()
    assert 1e-4 < error < 0.05  # rounded, but not far off


def test_a_packed_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load it again"):
        save_pretrained(pack(small_model().for_inference()), tmp_path / "x")
    assert not (tmp_path / "x").exists()
