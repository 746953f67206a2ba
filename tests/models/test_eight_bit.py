"""8-bit linears for GPUs against float64 sums of their rounded factors; CPUs have the same products."""
from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F
from conftest import EVERY_DEVICE, small_model

from inference.settings import load_model
from models.config import GenerationConfig
from models.speed.packed import (
    CAPABILITIES,
    FP8,
    INT8,
    EightBitLinear,
    Float8Linear,
    Int8Linear,
    QuantizedLinear,
    exact_levels,
    linear_kind,
    replace_linears,
    require_gpu,
)
from models.varsr import VARSR, ScaleStep

NAMES = {Int8Linear: INT8, Float8Linear: FP8}
KINDS = list(NAMES)


def layer(inputs: int = 48, outputs: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs ** 0.5
    return weight, torch.randn(outputs, generator=generator)


def tokens(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def require_products(device: torch.device, kind: type[EightBitLinear]) -> None:
    """Skip where a GPU has none of a kind."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITIES[NAMES[kind]]:
        pytest.skip(f"NOTICE: this GPU has no {NAMES[kind]} products")


def rounded(x: torch.Tensor, kind: type[EightBitLinear]) -> torch.Tensor:
    """Rows as 8 bits leave them, in float64: to 127 steps, or to four significant bits of at most 448."""
    largest = 127 if kind is Int8Linear else 448
    steps = x.double().abs().amax(-1, keepdim=True) / largest
    scaled = x.double() / steps
    if kind is Int8Linear:
        return scaled.round() * steps
    exponent = torch.frexp(scaled).exponent.clamp(min=-5)  # below 2^-6 the steps stay what they are there
    return torch.ldexp(torch.ldexp(scaled, 4 - exponent).round(), exponent - 4) * steps


@pytest.mark.parametrize("device", EVERY_DEVICE, indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 31, 200])
@pytest.mark.parametrize("gelu", [False, True])
def test_products_are_those_of_the_rounded_factors(device: torch.device, kind: type[EightBitLinear], count: int,
                                                   gelu: bool) -> None:
    require_products(device, kind)
    weight, bias = layer()
    x = tokens(2, count, 48)
    expected = F.linear(rounded(x, kind), rounded(weight, kind), bias.double())
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    found = kind(weight.to(device), bias.to(device), gelu)(x.to(device)).cpu()
    # A factor that lies between two codes may fall to either side: its scale was rounded to float32.
    assert (found.double() - expected).norm() < 2e-3 * expected.norm()
    sums_shortened = device.type == "cuda" and kind is Float8Linear  # Hopper's tensor cores keep some 13 bits of them
    assert (found.double() - expected).abs().median() < (1e-3 if sums_shortened else 1e-5)


@pytest.mark.parametrize("kind, error", [(Int8Linear, 0.01), (Float8Linear, 0.04)])
def test_close_to_the_exact_product(kind: type[EightBitLinear], error: float) -> None:
    weight, bias = layer()
    x = tokens(100, 48).bfloat16()
    exact = F.linear(x.double(), weight.double(), bias.double())
    found = kind(weight, bias)(x)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() < error * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_zeros_and_one_far_larger_than_its_neighbours(kind: type[EightBitLinear]) -> None:
    weight, bias = layer()
    x = tokens(3, 48)
    alone = kind(weight, bias)(x[2:])
    x[0], x[1] = 0, 1e6 * x[1]
    together = kind(weight, bias)(x)
    torch.testing.assert_close(together[0], bias)
    torch.testing.assert_close(together[2:], alone)


@pytest.mark.skipif((exact_levels() or 0) < 127, reason="this processor has no VNNI")
def test_integers_are_those_of_the_cpu_layer() -> None:
    weight, bias = layer()
    x = tokens(40, 48)
    torch.testing.assert_close(Int8Linear(weight, bias)(x), QuantizedLinear(weight, bias)(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", EVERY_DEVICE, indirect=True)
@pytest.mark.parametrize("kind, largest", [(Int8Linear, 0.05), (Float8Linear, 0.2)])
def test_a_model_in_8_bits_is_close(device: torch.device, kind: type[EightBitLinear], largest: float,
                                    pictures: torch.Tensor) -> None:
    require_products(device, kind)
    model = small_model().to(device)
    expected = first_scale(model, pictures)
    replace_linears(model.for_inference(), kind)
    found = first_scale(model, pictures)
    error = (found.logits - expected.logits).norm() / expected.logits.norm()
    assert 1e-4 < error < largest  # rounded, but not far off


def first_scale(model: VARSR, pictures: torch.Tensor) -> ScaleStep:
    steps: list[ScaleStep] = []
    restored = model.generate(pictures, options=GenerationConfig(cfg=1.0), on_scale=steps.append)
    assert restored.isfinite().all()
    return steps[0]


def test_every_device_has_its_layer() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    found = [linear_kind(gpu, torch.bfloat16, "int8"), linear_kind(gpu, torch.bfloat16, "fp8"),
             linear_kind(cpu, torch.float32, "fp8")]
    assert found == [Int8Linear, Float8Linear, Float8Linear]
    with pytest.raises(ValueError, match="packed for CPUs"):
        linear_kind(gpu, torch.bfloat16, None)


def test_a_device_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    require_gpu(torch.device("cuda"), "int8")
    with pytest.raises(ValueError, match=r"fp8 needs compute capability 8\.9, and this GPU has 8\.6"):
        require_gpu(torch.device("cuda"), "fp8")
    with pytest.raises(ValueError, match="--dtype fp8 is for GPUs"):
        load_model(argparse.Namespace(model=None, device="cpu", dtype="fp8"))
