"""Operations and memory traffic of one generation, counted from the configuration (a multiply-add is two)."""
from __future__ import annotations

from collections.abc import Sequence

from models.config import VARSRConfig, VQVAEConfig
from models.fastvar import FastVARConfig

KERNEL = 9  # taps of a 3x3 convolution


def _conv(cells: int, inputs: int, outputs: int, taps: int = KERNEL) -> int:
    return 2 * cells * inputs * outputs * taps


def prefix_flops(config: VARSRConfig) -> int:
    """LR prefix encoder, one picture."""
    prefix = config.transformer.prefix
    if prefix is None:
        return 0
    side = config.image_size // prefix.stem
    total = _conv(side ** 2, 3 * prefix.stem ** 2, prefix.widths[0])
    for narrow, wide in zip(prefix.widths, prefix.widths[1:]):
        total += _conv(side ** 2, narrow, narrow) + _conv((side // 2) ** 2, narrow, wide)
        side //= 2
    return total + _conv(side ** 2, prefix.widths[-1], config.transformer.width)


def _computed(config: VARSRConfig, fastvar: FastVARConfig | None, scale: int, layer: int) -> int:
    """Tokens that a block computes at a scale."""
    side = config.vqvae.scales[scale]
    if scale == 0:
        return config.prefix_tokens + 1
    return side * side if fastvar is None else fastvar.kept(side, layer)


def scale_flops(config: VARSRConfig, fastvar: FastVARConfig | None = None) -> list[int]:
    """Transformer blocks at every scale, one row. The last block leaves the prefix out but for its keys and values."""
    transformer = config.transformer
    width, depth = transformer.width, transformer.depth
    seen, totals = [0] * depth, []
    for k in range(len(config.vqvae.scales)):
        total = 0
        for layer in range(depth):
            tokens = _computed(config, fastvar, k, layer)
            computed = 1 if k == 0 and layer == depth - 1 else tokens
            seen[layer] += tokens
            total += 2 * width * width * (3 * tokens + (1 + 2 * transformer.ffn_ratio) * computed)
            total += 4 * computed * seen[layer] * width
        totals.append(total)
    return totals


def scale_bytes(config: VARSRConfig, weight_size: int, key_size: int, rows: Sequence[int],
                fastvar: FastVARConfig | None = None) -> list[int]:
    """What the blocks must read at every scale at the least: their weights once, and each row's keys and values.

    The sizes are bytes of a weight, and of a key's or value's component.
    """
    transformer = config.transformer
    weights = transformer.depth * transformer.width ** 2 * (4 + 2 * transformer.ffn_ratio)
    seen, totals = 0, []
    for k, count in enumerate(rows):
        seen += sum(_computed(config, fastvar, k, layer) for layer in range(transformer.depth))
        totals.append(weight_size * weights + key_size * 2 * count * seen * transformer.width)
    return totals


def head_flops(config: VARSRConfig, scale: int) -> int:
    """Code logits of a scale, one row."""
    return 2 * config.vqvae.scales[scale] ** 2 * config.transformer.width * config.vqvae.vocab_size


def refiner_flops(config: VARSRConfig, steps: int) -> int:
    """All steps of the refiner, one row."""
    refiner, width = config.refiner, config.refiner.width
    channels = config.vqvae.latent_channels
    step = 2 * (channels * width + refiner.depth * 5 * width * width + 2 * width * width + width * 2 * channels)
    once = 2 * config.transformer.width * width
    return config.vqvae.side ** 2 * (steps * step + once)


def decoder_flops(config: VQVAEConfig) -> int:
    """post_quant and decoder, one picture (without fidelity features)."""
    widths, coarsest = config.widths, len(config.widths) - 1
    cells, lowest = config.side ** 2, config.widths[-1]
    attention = _conv(cells, lowest, 4 * lowest, 1) + 4 * cells * cells * lowest
    total = _conv(cells, config.latent_channels, config.latent_channels) + _conv(cells, config.latent_channels, lowest)
    total += 4 * _conv(cells, lowest, lowest) + attention
    for i in reversed(range(coarsest + 1)):
        inputs = widths[min(i + 1, coarsest)]
        for block in range(config.res_blocks + 1):
            channels = inputs if block == 0 else widths[i]
            total += _conv(cells, channels, widths[i]) + _conv(cells, widths[i], widths[i])
            if channels != widths[i]:
                total += _conv(cells, channels, widths[i], 1)
            if i == coarsest:
                total += attention
        if i:
            cells *= 4
            total += _conv(cells, widths[i], widths[i])
    if config.linear_path:
        total += _conv(config.side ** 2, config.latent_channels, 3 * config.downsampling ** 2, 1)
    return total + _conv(cells, widths[0], 3 * config.stem ** 2)
