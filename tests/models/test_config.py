"""Configurations: JSON round trip, refusals that name the field."""
from __future__ import annotations

import json

import pytest

from models.config import PRESETS, ConfigError, GenerationConfig, TransformerConfig, VARSRConfig, VQVAEConfig


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    assert VARSRConfig.from_json(PRESETS[name].to_json()) == PRESETS[name]


def test_published_sizes() -> None:
    config = PRESETS["varsr-d24"]
    assert (config.image_size, config.vqvae.downsampling, config.num_tokens) == (512, 16, 1024 + 2240)
    assert PRESETS["varsr-d24-c2i"].num_tokens == sum(n * n for n in PRESETS["varsr-d24-c2i"].vqvae.scales)


@pytest.mark.parametrize("change, named", [
    ({"surprise": 1}, "surprise"), ({"format": 99}, "99"), ({"vqvae": {"scales": [2, 1]}}, "scales"),
    ({"vqvae": {"base_width": 33}}, "norm_groups"), ({"transformer": {"num_heads": 7}}, "num_heads"),
])
def test_bad_json_is_refused_by_name(change: dict, named: str) -> None:
    values = json.loads(PRESETS["varsr-debug"].to_json())
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=named):
        VARSRConfig.from_json(json.dumps(values))


@pytest.mark.parametrize("values", [{"cfg": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"scale": 0.5}])
def test_generation_ranges(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        GenerationConfig(**values)


def test_prefix_and_tokenizer_must_agree() -> None:
    with pytest.raises(ConfigError, match="must agree"):
        VARSRConfig(vqvae=VQVAEConfig(multipliers=(1, 2)), transformer=TransformerConfig())
