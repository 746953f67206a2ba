"""Models of random weights, for speed does not depend on the values.

`python -m benchmarks.random_weights PRESET TYPE DIR` writes a preset's inference export: a process of its own, so that
writing does not count as memory of the process that is measured. On a GPU a model is made where it is used.
"""
from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor

from models.config import PRESETS, VARSRConfig
from models.varsr import VARSR
from models.weights.save import write_folder

WEIGHT_STD = 0.02
NARROW = "narrow"


def narrow_config() -> VARSRConfig:
    """The windows and stages of the embedded model with next to no arithmetic in them: what is left is the rest."""
    config = PRESETS["varsr-tiny"]
    prefix = dataclasses.replace(config.transformer.prefix, widths=(16, 64))
    return dataclasses.replace(
        config, name=NARROW,
        vqvae=dataclasses.replace(config.vqvae, base_width=32, vocab_size=64, fidelity_width=16, fidelity_blocks=1,
                                  fidelity_pixels=8),
        transformer=dataclasses.replace(config.transformer, depth=1, width=64, num_heads=1, prefix=prefix),
        refiner=dataclasses.replace(config.refiner, width=32, depth=1, sampling_steps=2))


def random_tensors(config: VARSRConfig, dtype: torch.dtype, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Small random weights for a configuration."""
    with torch.device("meta"):
        expected = VARSR(config).state_dict()
    return {name: torch.empty(tensor.shape, dtype=dtype, device=device).normal_(std=WEIGHT_STD)
            for name, tensor in expected.items()}


def random_model(config: VARSRConfig, dtype: torch.dtype, device: torch.device) -> VARSR:
    """A model of such weights, made on its device; `config.inference` decides whether it can be trained."""
    return VARSR.from_tensors(config, random_tensors(config, dtype, device), dtype, device)


def write_random(preset: str, dtype: torch.dtype, folder: Path) -> None:
    """Write a preset, or "narrow", in `dtype`."""
    config = dataclasses.replace(narrow_config() if preset == NARROW else PRESETS[preset], inference=True)
    write_folder(config, random_tensors(config, dtype), folder, dtype)


if __name__ == "__main__":
    write_random(sys.argv[1], getattr(torch, sys.argv[2]), Path(sys.argv[3]))
