"""The preset `--fast`: the quickest settings of `benchmarks/bench_fast.py` with 32 dB or more to the plain run."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from models.config import GenerationConfig, VARSRConfig
from models.fastvar import SHARED, FastVARConfig

GUIDED_SCALES = 1  # the last one alone
REFINER_STEPS = 4
DROP_RATIOS = (0.4, 0.6, 0.6)  # of the last scales
UNPRUNED_SHARE = 8  # one block in so many, from the first on, computes every token
KEPT_CELLS = 16  # of the last scale's tokens, one in so many stays in any case


def fast_generation(config: VARSRConfig) -> GenerationConfig:
    """The model's own sampling with late guidance and fewer refiner steps."""
    return dataclasses.replace(config.generation, cfg_from_scale=len(config.vqvae.scales) - GUIDED_SCALES,
                               refiner_steps=min(REFINER_STEPS, config.refiner.sampling_steps))


def fast_pruning(config: VARSRConfig, ratios: Sequence[float] = DROP_RATIOS) -> FastVARConfig:
    """Token pruning in proportion to the model's depth and number of tokens."""
    ratios = ratios[-(len(config.vqvae.scales) - 1):]
    return FastVARConfig.for_last(
        config.vqvae.scales, ratios, mode=SHARED, later_layer_start=max(config.transformer.depth // UNPRUNED_SHARE, 1),
        min_keep=max(config.vqvae.side ** 2 // KEPT_CELLS, 1))
