"""The tokenizer alone as one file: `vqvae.safetensors`, its configuration in the file's own metadata."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.errors import first_line
from utils.files import replacing

from ..config import VQVAEConfig, build, parsed
from ..vqvae import VQVAE
from .load import load_vqvae
from .unpickle import CheckpointError
from .weight_file import DTYPE_NAMES, check_header, finite, read_safetensors, write_safetensors

TOKENIZER_WEIGHTS = "vqvae.safetensors"
CONFIG_KEY = "vqvae_config"
CODE_USAGE = "quantizer.code_usage"
BESIDE_LR = ("fidelity.", "faithful.", "detail.")  # parts that look at the LR picture, which no tokenizer sees
LISTED_NAMES = 3


def write_tokenizer(model: VQVAE, path: str | PathLike) -> None:
    """Write weights (float32) and configuration; under a temporary name first, then renamed.

    Raises CheckpointError where a weight is not finite.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    with replacing(path) as temporary:
        write_safetensors(temporary, tensors, dict.fromkeys(tensors, torch.float32),
                          {CONFIG_KEY: json.dumps(dataclasses.asdict(model.config))})


def tokenizer_config(path: str | PathLike) -> VQVAEConfig | None:
    """The configuration that a file of `write_tokenizer` carries; None for one without.

    Raises FileNotFoundError or CheckpointError.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"tokenizer {path} not found: train_vqvae.py writes {TOKENIZER_WEIGHTS}")
    path = Path(path)
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CONFIG_KEY)
        return None if text is None else build(VQVAEConfig, parsed(text))
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or no tokenizer file ({first_line(error)}): copy or make it again"
                              ) from error


def load_tokenizer(source: str | PathLike, fallback: VQVAEConfig | None = None,
                   scales: Sequence[int] | None = None) -> VQVAE:
    """A tokenizer to go on training with, float32 on the CPU: a file of `write_tokenizer`, or what `load_vqvae` takes.

    fallback: configuration of a file that carries none. scales: other sides of the token maps than the file's; the
    largest one and the down-sampling give the picture's size. What looks at an LR picture is left out.
    Raises FileNotFoundError or CheckpointError.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        config = tokenizer_config(path) or fallback
        if config is None:
            raise CheckpointError(f"{path} does not say how it is built: give its preset")
        tensors = read_safetensors(path)
    else:
        loaded = load_vqvae(path, scales)
        config, tensors = loaded.config, loaded.state_dict()
    if scales is not None and tuple(scales) != config.scales:
        config = dataclasses.replace(config, scales=tuple(scales))
        tensors[CODE_USAGE] = torch.zeros(len(config.scales), config.vocab_size)
    config = dataclasses.replace(config, fidelity_width=0, fidelity_pixels=0, faithful_width=0, detail_width=0)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(BESIDE_LR)}
    with torch.device("meta"):  # nothing is made before the file is known to fill it
        own = VQVAE(config).state_dict()
    faults = [name for name in {*own, *tensors}
              if name not in own or name not in tensors or own[name].shape != tensors[name].shape
              or tensors[name].dtype not in DTYPE_NAMES or not finite(tensors[name])]
    if faults:
        raise CheckpointError(f"{path} is no tokenizer of the configuration that it is loaded with: "
                              f"{', '.join(sorted(faults)[:LISTED_NAMES])} are missing, unknown, of another shape or "
                              "not finite")
    model = VQVAE(config)
    model.load_state_dict(tensors)
    return model
