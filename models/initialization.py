"""Starting weights for training (VAR, appendix; the refiner follows DiT's adaLN-Zero)."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .refiner import DiffusionRefiner
from .transformer import Block, Modulation, VARTransformer
from .varsr import VARSR

CONV_STD = 0.02
PUBLISHED_ENCODER = 512  # channels that prefix encoders of the published family reach, whatever the model's depth
TIME_MLP_STD = 0.02
SHARED_GATE = 0.2  # gates of blocks with a shared modulation start open enough to train in few steps


@dataclass(frozen=True)
class InitConfig:
    """Factors of the published command line."""

    std: float | None = None  # of linears and embeddings; None: sqrt(1 / (3 · width))
    head: float = 0.02
    modulation: float = 0.5  # --aln
    gate: float = 1e-5  # --alng, on the gamma rows


def _truncated(weight: torch.Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


@torch.no_grad()
def initialize(model: VARSR, config: InitConfig | None = None) -> None:
    """Draw transformer and refiner weights from torch's global generator; the tokenizer is left alone."""
    config = config or InitConfig()
    _initialize_transformer(model.transformer, config)
    _initialize_refiner(model.refiner)


def _initialize_transformer(transformer: VARTransformer, config: InitConfig) -> None:
    width, depth = transformer.config.width, transformer.config.depth
    std = math.sqrt(1 / (3 * width)) if config.std is None else config.std
    for module in transformer.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            _truncated(module.weight, std)
        elif isinstance(module, nn.Conv2d):
            _truncated(module.weight, CONV_STD)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    prefix = transformer.config.prefix
    if prefix is not None and max(prefix.widths) < PUBLISHED_ENCODER:
        _initialize_small_encoder(transformer.prefix_encoder)
    _truncated(transformer.start_position, std)
    transformer.head.weight.mul_(config.head)
    transformer.head_modulation.weight.mul_(config.modulation)
    for block in transformer.blocks:
        block.attention.out.weight.div_(math.sqrt(2 * depth))
        block.feed_forward.project.weight.div_(math.sqrt(2 * depth))
        _initialize_modulation(block, width, config)
    if transformer.shared_modulation is not None:
        transformer.shared_modulation.weight.mul_(config.modulation)


def _initialize_small_encoder(encoder: nn.Module) -> None:
    """Std 0.02 is that of the published encoder, narrow convolutions included. In an encoder that has no wide ones it
    would let the LR picture fade away: there, all start at the variance-keeping std where it is larger."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            keeping = math.sqrt(2 / fan_in)
            if keeping > CONV_STD:
                _truncated(module.weight, keeping)


def _initialize_modulation(block: Block, width: int, config: InitConfig) -> None:
    if hasattr(block, "modulation_offset"):
        nn.init.zeros_(block.modulation_offset)
        block.modulation_offset[:2] = SHARED_GATE
        return
    rows = block.modulation.weight.unflatten(0, (len(Modulation._fields), width))
    rows[2:].mul_(config.modulation)
    rows[:2].mul_(config.gate)


def _initialize_refiner(refiner: DiffusionRefiner) -> None:
    for module in refiner.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for layer in (refiner.time_embedding[0], refiner.time_embedding[2]):
        nn.init.normal_(layer.weight, std=TIME_MLP_STD)
    zeroed = [block.modulation for block in refiner.blocks] + [refiner.output_modulation, refiner.output]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
