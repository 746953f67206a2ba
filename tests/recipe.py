"""Weights and pictures of the reference cases, drawn from names, shapes and seeds instead of being stored.

Every tensor has a random stream of its own, keyed by the case's seed and the tensor's published name, so that a
manifest (JSON: name -> shape) is enough to rebuild a checkpoint bit for bit on any machine.
"""
from __future__ import annotations

import json
import math
import zlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.config import PRESETS, PrefixConfig, RefinerConfig, TransformerConfig, VARSRConfig, VQVAEConfig
from models.varsr import VARSR
from models.weights.published import to_published

REFERENCE = Path(__file__).parent / "reference"
CASES = REFERENCE / "cases"

# value = centre + spread * noise; names not listed are decided by their dimensions.
LAWS_BY_LEAF = {
    "zero_k_bias": (0.0, 0.0),
    "ema_vocab_hit_SV": (0.0, 0.0),
    "scale_mul_1H11": (math.log(16.0), 0.1),
}
LAWS_BY_NAME = {
    "quantize.embedding.weight": (0.0, 0.7),
    "class_emb.weight": (0.0, 0.2),
    "pos_start": (0.0, 0.2),
    "lvl_embed.weight": (0.0, 0.05),
}
NORM_WEIGHT_LAW, BIAS_LAW = (1.0, 0.1), (0.0, 0.05)
# A model of the published architecture, small enough to be written to disk in a blink.
SMALL = VARSRConfig(
    name="varsr-d2",
    vqvae=VQVAEConfig(scales=(1, 2, 4), vocab_size=16, latent_channels=4, base_width=32, multipliers=(1, 2),
                      res_blocks=1, phi_count=2),
    transformer=TransformerConfig(depth=2, width=32, num_heads=2, drop_path=0.1 / 24 * 2,
                                  prefix=PrefixConfig(widths=(8, 16))),
    refiner=RefinerConfig(width=16, depth=1),
    generation=PRESETS["varsr-d24"].generation)
LEVELS, ATTENTION_BIAS = "lvl_1L", "attn_bias_for_masking"


def _matrix_gain(name: str) -> float:
    """Spread of a matrix or kernel relative to 1 / sqrt(fan-in)."""
    exact = {"head.weight": 4.0, "word_embed.weight": 2.0}
    if name in exact:
        return exact[name]
    if name.startswith("con_embedding."):
        return 10.0 if "conv_out" in name else 1.8
    endings = {"attn.proj.weight": 6.0, "ada_lin.1.weight": 0.5}
    return next((gain for ending, gain in endings.items() if name.endswith(ending)), 1.0)


def weight(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The float32 tensor of a published name."""
    stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = stream.standard_normal(tuple(shape)).astype(np.float32)
    leaf = name.rpartition(".")[2]
    divisor = 1.0
    if leaf in LAWS_BY_LEAF:
        centre, spread = LAWS_BY_LEAF[leaf]
    elif name in LAWS_BY_NAME:
        centre, spread = LAWS_BY_NAME[name]
    elif len(shape) == 1:
        centre, spread = NORM_WEIGHT_LAW if leaf == "weight" else BIAS_LAW
    else:
        centre, spread, divisor = 0.0, _matrix_gain(name), math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy((centre + spread * noise / divisor).astype(np.float32))


def token_levels(scales: Sequence[int], start_tokens: int) -> Tensor:
    """Level of each token, (1, L) int64; level 0 has `start_tokens` tokens."""
    lengths = [start_tokens] + [side * side for side in scales[1:]]
    return torch.cat([torch.full((length,), level) for level, length in enumerate(lengths)])[None]


def attention_bias(levels: Tensor) -> Tensor:
    """Additive block-causal mask (1, 1, L, L) float32 of the levels (1, L)."""
    seen = levels.transpose(0, 1) >= levels
    return torch.zeros(seen.shape).masked_fill(~seen, -math.inf)[None, None]


def manifest_weights(manifest: str | Path, seed: int) -> dict[str, Tensor]:
    """Every tensor of a manifest file under its published name, level buffers included where it lists them."""
    facts = json.loads(Path(manifest).read_text(encoding="utf-8"))
    tensors = {}
    for name, shape in facts["tensors"].items():
        if name in (LEVELS, ATTENTION_BIAS):
            levels = token_levels(facts["patch_nums"], facts["prefix_tokens"])
            tensors[name] = levels if name == LEVELS else attention_bias(levels)
        else:
            tensors[name] = weight(name, shape, seed)
    return tensors


def manifest_shapes(manifest: str | Path) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of a manifest file."""
    facts = json.loads(Path(manifest).read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape in facts["tensors"].items()}


def case_weights(case_dir: str | Path, manifest: str, seed: int) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """Transformer (None where the case has none) and VQVAE tensors of a case's `manifest`, in published names."""
    transformer = Path(case_dir) / f"{manifest}.transformer.json"
    vqvae = manifest_weights(Path(case_dir) / f"{manifest}.vqvae.json", seed)
    return (manifest_weights(transformer, seed) if transformer.exists() else None), vqvae


def config_weights(config: VARSRConfig, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As `case_weights`, for any configuration of the published architecture."""
    with torch.device("meta"):
        shapes = to_published(config, VARSR(config).state_dict())
    levels = token_levels(config.vqvae.scales, config.prefix_tokens + 1)
    buffers = {LEVELS: levels, ATTENTION_BIAS: attention_bias(levels)}
    transformer, vqvae = ({name: buffers[name] if name in buffers else weight(name, tensor.shape, seed)
                           for name, tensor in part.items()} for part in (shapes.transformer, shapes.vqvae))
    return transformer, vqvae


def write_published_checkpoint(folder: str | Path, transformer: Mapping[str, Tensor] | None,
                               vqvae: Mapping[str, Tensor] | None) -> Path:
    """Write `VARSR.pth` (if there is a transformer) and `VQVAE.pth` (if there is a VQVAE) as they are published.

    Returns the path to load: `VARSR.pth`, or `VQVAE.pth` when there is no transformer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = folder
    for file, part, tensors in (("VQVAE.pth", "vae_local", vqvae), ("VARSR.pth", "var_wo_ddp", transformer)):
        if tensors is not None:
            written = folder / file
            torch.save({"epoch": 1, "iter": 2, "trainer": {part: dict(tensors), "config": {"note": "recipe"}},
                        "args": Namespace(depth=24, patch_nums=(1, 2, 3))}, written)
    return written


def write_published(folder: str | Path, transformer_manifest: str | Path | None, vqvae_manifest: str | Path | None,
                    seed: int) -> Path:
    """Recipe weights of two manifest files as published files (`write_published_checkpoint`)."""
    transformer, vqvae = (None if path is None else manifest_weights(path, seed)
                          for path in (transformer_manifest, vqvae_manifest))
    return write_published_checkpoint(folder, transformer, vqvae)


def picture(seed: int, batch: int, size: int) -> Tensor:
    """A smooth colour picture: a clipped sum of random plane waves, (batch, 3, size, size) float32 in [-1, 1]."""
    stream = np.random.default_rng([seed, size])
    waves_per_channel, brightness = 6, 3
    along = np.linspace(0, 1, size)
    channels = []
    for _ in range(batch * 3):
        channel = np.zeros((size, size))
        for _ in range(waves_per_channel):
            across, down = stream.uniform(0.5, 6, 2)
            height, phase = stream.uniform(0.2, 1), stream.uniform(0, 6.28)
            channel += height * np.sin(2 * np.pi * (across * along[None, :] + down * along[:, None]) + phase)
        channels.append(channel)
    stacked = np.stack(channels).reshape(batch, 3, size, size)
    return torch.from_numpy(np.clip(stacked / brightness, -1, 1).astype(np.float32))
