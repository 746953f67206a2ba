"""Shared builders: a model small enough for tests, and quiet threads."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.config import PRESETS
from models.initialization import initialize
from models.varsr import VARSR


def small_model(preset: str = "varsr-debug", seed: int = 0) -> VARSR:
    """A model with random weights that are large enough for every part to matter."""
    torch.manual_seed(seed)
    model = VARSR(PRESETS[preset])
    initialize(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.vqvae.quantizer.codebook.weight.normal_(std=0.7)
        model.transformer.head.weight.normal_(std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model() -> VARSR:
    """A random super-resolution model of the debug preset; tests must not change it."""
    return small_model()


@pytest.fixture(scope="session")
def pictures(model: VARSR) -> torch.Tensor:
    """Three LR pictures at output size, in [0, 1]."""
    size = model.config.image_size
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
