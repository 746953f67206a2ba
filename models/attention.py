"""Multi-head attention with normalised queries and keys, rotary positions and a learned temperature per head."""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import LayerCache
from .rope import rotate

MAX_LOG_SCALE = math.log(100.0)  # bound of the learned attention temperature
INITIAL_LOG_SCALE = math.log(4.0)
NORM_FLOOR = 1e-12  # as F.normalize
QUERY_CHUNK = 512  # queries whose scores fit the cache of one CPU core


class Attention(nn.Module):
    """Self-attention of the transformer's blocks (VAR, section 3.3; positions: VARSR, section 3.3)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((1, num_heads, 1, 1), INITIAL_LOG_SCALE))
        self.out = nn.Linear(width, width)
        self.packed_qkv: nn.Module | None = None  # in place of qkv and its biases, see packed.py

    def forward(self, x: Tensor, rope: Tensor, cache: LayerCache | None = None, levels: Sequence[int] | None = None,
                queries: slice = slice(None)) -> Tensor:
        """x: (B, L, C); rope: rotations (L, head_dim/2, 2), or (B, L, head_dim/2, 2) where rows differ.

        With a cache, attends to all that it holds and to x. Without one, `levels` are the lengths of the stretches
        of x, each of which sees itself and those before it (training); None: all see all. `queries`: which tokens to
        compute, all by default.
        """
        qkv = F.linear(x, self.qkv.weight, self.qkv_bias()) if self.packed_qkv is None else self.packed_qkv(x)
        qkv = qkv.unflatten(-1, (3 * self.num_heads, -1))  # (B, L, 3H, head_dim)
        q, k = self.positioned(qkv[:, :, :2 * self.num_heads], rope).transpose(1, 2).chunk(2, dim=1)
        v = qkv[:, :, 2 * self.num_heads:].transpose(1, 2)  # (B, H, L, head_dim)
        if cache is not None:
            k, v = cache.append(k, v)
        attended = attend(q[:, :, queries], k, v) if levels is None else attend_levels(q, k, v, levels)
        return self.out(attended.transpose(1, 2).flatten(2))

    def qkv_bias(self) -> Tensor:
        """Biases of queries, keys and values (3C,): keys have none."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def positioned(self, qk: Tensor, rope: Tensor) -> Tensor:
        """Queries and keys (B, L, 2H, head_dim) of unit length, queries times the temperature, rotated."""
        dtype, qk = qk.dtype, qk.float()
        temperature = self.log_scale.float().flatten().clamp(max=MAX_LOG_SCALE).exp()
        lengths = torch.cat([temperature, torch.ones_like(temperature)])[:, None]
        norms = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
        return rotate(qk * (lengths / norms), rope.unsqueeze(-3)).to(dtype)


def attend_levels(q: Tensor, k: Tensor, v: Tensor, levels: Sequence[int]) -> Tensor:
    """Block-causal attention of (B, H, L, head_dim) queries, keys and values: each of the `levels`, which are L tokens
    together, sees itself and those before it.

    One call a level: no mask of L² entries, no work on what would be masked (two fifths of the published sequence), and
    the kernels that know no masks (benchmarks/bench_attention.py).
    """
    ends = list(accumulate(levels))
    return torch.cat([attend(part, k[:, :, :end], v[:, :, :end])
                      for part, end in zip(q.split(list(levels), dim=2), ends, strict=True)], dim=2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ) v of (B, H, L, head_dim) queries over (B, H, M, head_dim) keys, without a 1/sqrt(d) factor.

    PyTorch's bf16 attention runs at a third of the matrix rate on CPUs; one head at a time, with scores that fit the
    cache, plain products are a third faster (benchmarks/bench_attention.py).
    """
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not q.requires_grad
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    result = torch.empty_like(q)
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = k[row, head].t(), v[row, head]
            for start in range(0, q.shape[2], QUERY_CHUNK):
                chunk = slice(start, start + QUERY_CHUNK)
                result[row, head, chunk] = (q[row, head, chunk] @ keys).softmax(-1) @ values
    return result
