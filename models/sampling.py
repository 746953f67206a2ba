"""Choosing codes from logits: image-based guidance, top-k, top-p, the Gumbel mixture.

All randomness enters as uniform numbers drawn per picture by the caller (`Noise`), so that a picture does not depend
on the batch it is generated in.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GUMBEL_START, GUMBEL_DECAY, GUMBEL_FLOOR = 0.27, 0.95, 0.005  # temperature of `more_smooth` over the scales
TINY = 1e-20
CACHED = 2 ** 18  # numbers


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The host does not wait for a copy to a GPU, nor for what the GPU still has to do."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Noise:
    """Random numbers of a batch: one CPU generator per picture, so results agree across batches and devices."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) in [0, 1)."""
        return to_device(torch.stack([torch.rand(shape, generator=g) for g in self.generators]), self.device)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), standard normal."""
        return to_device(torch.stack([torch.randn(shape, generator=g) for g in self.generators]), self.device)


def guide(conditional: Tensor, unconditional: Tensor | None, strength: float) -> Tensor:
    """Classifier-free guidance (1 + t)·cond - t·uncond; without unconditional rows, the conditional ones."""
    if unconditional is None:
        return conditional
    return torch.lerp(conditional, unconditional, -strength)


def in_cache(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows (M, V) in parts that stay in a processor's cache while several things are done with them; on a GPU, one."""
    return rows.split(max(CACHED // rows.shape[-1], 1) if rows.device.type == "cpu" else max(len(rows), 1))


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) with all but the top-k codes, and of these all but the nucleus of mass top_p, at -inf.

    top_k 0 keeps all codes, top_p 1 the whole mass; the most likely code always stays.
    """
    vocab = logits.shape[-1]
    if 0 < top_k < vocab:
        logits = logits.masked_fill(logits < _kth_largest(logits, top_k), -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        before = mass.cumsum(-1) - mass  # mass of the codes that are likelier
        dropped = (before >= top_p).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def sample_codes(logits: Tensor, top_k: int, top_p: float, noise: Noise) -> Tensor:
    """One code per token: logits (B, L, V) to (B, L). top_k 1 is the arg-max and draws nothing."""
    if top_k == 1:
        return logits.argmax(-1)
    rows, uniform = in_cache(logits.flatten(0, 1)), noise.uniform(logits.shape[1]).flatten()
    parts = zip(rows, uniform.split(len(rows[0])), strict=True)
    return torch.cat([_sampled(filter_logits(row, top_k, top_p), place) for row, place in parts]).view(logits.shape[:2])


def _sampled(logits: Tensor, uniform: Tensor) -> Tensor:
    """Codes (M,) of logits (M, V): those at the places (M,) in [0, 1) of their cumulative distributions."""
    cumulative = logits.softmax(-1).cumsum(-1)
    codes = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return codes.clamp(max=logits.shape[-1] - 1)


def _kth_largest(logits: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, (..., 1). NumPy's partition takes a third of the time of `topk` on a processor."""
    if logits.device.type != "cpu":
        return logits.topk(k).values[..., -1:]
    place = logits.shape[-1] - k
    values = np.partition(logits.detach().float().numpy(), place, axis=-1)[..., place:place + 1]
    return torch.from_numpy(values).to(logits.dtype)


def gumbel_mixture(logits: Tensor, ratio: float, top_k: int, top_p: float, noise: Noise) -> Tensor:
    """Weights (B, L, V) of a soft mixture of codes (`more_smooth`), of those that `filter_logits` keeps; `ratio` in
    [0, 1] is the progress over scales."""
    temperature = max(GUMBEL_START * (1 - GUMBEL_DECAY * ratio), GUMBEL_FLOOR)
    uniform = noise.uniform(*logits.shape[1:]).clamp(min=TINY)
    gumbel = -(-uniform.log()).clamp(min=TINY).log()
    kept = filter_logits(logits, top_k, top_p)  # codes at -inf weigh nothing, whatever their noise
    return ((kept * (1 + ratio) + gumbel) / temperature).softmax(-1)
