"""Models to disk: our folders and published files.

Our format is a folder with `config.json` (`VARSRConfig.to_json`) and `model.safetensors` (our tensor names).
"""
from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import replacing

from ..config import VARSRConfig
from ..varsr import VARSR
from .load import CONFIG_FILE, TOKENIZER_FILE, TRANSFORMER_FILE, WEIGHTS_FILE, require_complete
from .published import to_published
from .weight_file import stored_type, write_safetensors


def save_pretrained(model: VARSR, folder: str | PathLike, dtype: torch.dtype | None = None) -> None:
    """Write a model as a folder of ours, its weights in `dtype` (their own type by default).

    Raises ValueError for a packed model, CheckpointError when a value is not finite in `dtype`.
    """
    if model.is_packed:
        raise UserError("this model is packed for one processor: load it again to save it")
    write_folder(model.config, model.state_dict(), folder, dtype)


def write_folder(config: VARSRConfig, tensors: Mapping[str, Tensor], folder: str | PathLike,
                 dtype: torch.dtype | None = None) -> None:
    """Write `model.safetensors`, then `config.json`, each under a temporary name that is renamed when it is whole.

    Raises CheckpointError when a value is not finite in `dtype`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {name: stored_type(name, tensor, dtype) for name, tensor in tensors.items()}
    with replacing(folder / WEIGHTS_FILE) as temporary:
        write_safetensors(temporary, tensors, dtypes)
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(config.to_json(), encoding="utf-8")


def export_published(model: VARSR, folder: str | PathLike) -> None:
    """Write a model as `VARSR.pth` and `VQVAE.pth` for the original code, in float32.

    Raises CheckpointError for a model with parts that the published format does not know, or an inference export.
    """
    write_published(model.config, model.state_dict(), folder)


def write_published(config: VARSRConfig, tensors: Mapping[str, Tensor], folder: str | PathLike) -> None:
    """As `export_published`, from a state dict."""
    require_complete(config, config.name)
    parts = to_published(config, tensors)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, key, part in ((TOKENIZER_FILE, "vae_local", parts.vqvae),
                            (TRANSFORMER_FILE, "var_wo_ddp", parts.transformer)):
        with replacing(folder / file) as temporary:
            state = {name: tensor.to("cpu", torch.float32 if tensor.is_floating_point() else None).contiguous()
                     for name, tensor in part.items()}
            torch.save({"epoch": 0, "iter": 0, "trainer": {key: state}, "args": {}}, temporary)
