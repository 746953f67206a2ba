"""Floating-point operations of one generation, counted from the configuration (a multiply-add is two)."""
from __future__ import annotations

from models.config import VARSRConfig, VQVAEConfig

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


def scale_flops(config: VARSRConfig) -> list[int]:
    """Transformer blocks and head at every scale (the prefix counts with the first), one row."""
    transformer = config.transformer
    width, vocab = transformer.width, config.vqvae.vocab_size
    totals, seen = [], 0
    for k, side in enumerate(config.vqvae.scales):
        tokens = side * side + (config.prefix_tokens if k == 0 else 0)
        seen += tokens
        linears = 2 * tokens * width * width * (4 + 2 * transformer.ffn_ratio)
        attention = 4 * tokens * seen * width
        totals.append(transformer.depth * (linears + attention) + 2 * side * side * width * vocab)
    return totals


def refiner_flops(config: VARSRConfig) -> int:
    """All steps of the refiner, one row."""
    refiner, width = config.refiner, config.refiner.width
    channels = config.vqvae.latent_channels
    step = 2 * (channels * width + refiner.depth * 5 * width * width + 2 * width * width + width * 2 * channels)
    once = 2 * config.transformer.width * width
    return config.vqvae.side ** 2 * (refiner.sampling_steps * step + once)


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
    return total + _conv(cells, widths[0], 3 * config.stem ** 2)
