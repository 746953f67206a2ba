"""Write a preset's inference export with small random weights: `python -m benchmarks.random_weights PRESET TYPE DIR`.

A process of its own, so that writing does not count as memory of the process that is measured.
"""
from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

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


def write_random(preset: str, dtype: torch.dtype, folder: Path) -> None:
    """Fill and write a preset, or "narrow", in `dtype`. Speed does not depend on the values."""
    config = dataclasses.replace(narrow_config() if preset == NARROW else PRESETS[preset], inference=True)
    with torch.device("meta"):
        expected = VARSR(config).state_dict()
    tensors = {name: torch.empty(tensor.shape, dtype=dtype).normal_(std=WEIGHT_STD)
               for name, tensor in expected.items()}
    write_folder(config, tensors, folder, dtype)


if __name__ == "__main__":
    write_random(sys.argv[1], getattr(torch, sys.argv[2]), Path(sys.argv[3]))
