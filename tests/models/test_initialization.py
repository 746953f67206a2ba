"""Starting weights: those that the published model pins, and those of small models."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from models.config import PRESETS, VARSRConfig, published_size
from models.initialization import initialize
from models.varsr import VARSR

TRUNCATED = 0.8796  # standard deviation of a normal distribution cut off at two of them


def convolutions(config: VARSRConfig) -> list[nn.Conv2d]:
    """Those of a prefix encoder that has just got its starting weights."""
    torch.manual_seed(0)
    model = VARSR(config)
    initialize(model)
    return [module for module in model.transformer.prefix_encoder.modules() if isinstance(module, nn.Conv2d)]


def published(depth: int) -> VARSRConfig:
    """A model of the published family around a small tokenizer."""
    config = published_size(depth)
    vqvae = dataclasses.replace(config.vqvae, scales=(1, 2), base_width=32, multipliers=(1,) * 5, res_blocks=1)
    return dataclasses.replace(config, vqvae=vqvae, refiner=PRESETS["varsr-debug"].refiner)


@pytest.mark.parametrize("depth", [1, 2])
def test_convolutions_of_the_published_encoder_start_at_002(depth: int) -> None:
    found = convolutions(published(depth))
    assert [each.out_channels for each in found] == [32, 32, 128, 128, 256, 256, 512, 512, 64 * depth, 64 * depth]
    for each in found:
        assert each.weight.std().item() == pytest.approx(0.02 * TRUNCATED, rel=0.1)
        assert each.weight.abs().max() <= 0.04 and not each.bias.any()


@pytest.mark.parametrize("preset", ["varsr-tiny", "varsr-debug"])
def test_small_encoders_keep_the_pictures_variance(preset: str) -> None:
    for each in convolutions(PRESETS[preset]):
        keeping = math.sqrt(2 / (9 * each.in_channels))
        assert each.weight.std().item() == pytest.approx(keeping * TRUNCATED, rel=0.1) and keeping > 0.02
