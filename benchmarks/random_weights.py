"""Write a preset's inference export with small random weights: `python -m benchmarks.random_weights PRESET TYPE DIR`.

A process of its own, so that writing does not count as memory of the process that is measured.
"""
from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from models.checkpoint import write_folder
from models.config import PRESETS
from models.varsr import VARSR

WEIGHT_STD = 0.02


def write_random(preset: str, dtype: torch.dtype, folder: Path) -> None:
    """Fill and write a preset in `dtype`. Speed does not depend on the values."""
    config = dataclasses.replace(PRESETS[preset], inference=True)
    with torch.device("meta"):
        expected = VARSR(config).state_dict()
    tensors = {name: torch.empty(tensor.shape, dtype=dtype).normal_(std=WEIGHT_STD)
               for name, tensor in expected.items()}
    write_folder(config, tensors, folder, dtype)


if __name__ == "__main__":
    write_random(sys.argv[1], getattr(torch, sys.argv[2]), Path(sys.argv[3]))
