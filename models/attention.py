"""Multi-head attention with normalised queries and keys, rotary positions and a learned temperature per head.

Positions are scale-aligned (VARSR, section 3.3): every scale's grid spans the same extent, so that a cell of a coarse
scale and the cells of a fine scale (and of the LR prefix) that cover the same place carry the same angles. Keys and
values of a generation are cached, scale by scale.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from utils.device import return_freed_memory

LARGE = 256 * 2 ** 20  # bytes; half a gigabyte and more at the published size
MAX_LOG_SCALE = math.log(100.0)  # bound of the learned attention temperature
INITIAL_LOG_SCALE = math.log(4.0)
NORM_FLOOR = 1e-12  # as F.normalize
QUERY_CHUNK = 512  # queries whose scores fit the cache of one CPU core


def grid_angles(side: int, head_dim: int, base: float, extent: float) -> Tensor:
    """Angles of an n x n grid, row-major: (n*n, head_dim/2) float32; the first half of the pairs turns with the
    row, the second with the column."""
    quarter = head_dim // 4
    frequencies = base ** (-4.0 * torch.arange(quarter, dtype=torch.float32) / head_dim)
    positions = torch.arange(side, dtype=torch.float32) * (extent / side)
    along = positions[:, None] * frequencies  # (n, head_dim/4)
    rows = along[:, None, :].expand(side, side, quarter)
    columns = along[None, :, :].expand(side, side, quarter)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, 2 * quarter)


def rope_table(scales: Sequence[int], prefix_side: int, head_dim: int, base: float,
               extent: float) -> Tensor:
    """Cosines and sines (tokens, head_dim/2, 2) of the whole sequence: prefix grid (side 0: none), then every scale."""
    sides = ([prefix_side] if prefix_side else []) + list(scales)
    angles = torch.cat([grid_angles(side, head_dim, base, extent) for side in sides])
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x (..., head_dim), float32, by (..., head_dim/2, 2) cosines and sines."""
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler knows real numbers only
        (a, b), (cos, sin) = pairs.unbind(-1), rotations.unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotations)).flatten(-2)


class Context(Protocol):
    """What the tokens of a forward pass see: a `LayerCache` in generation, `BlockCausal` in training."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries (B, H, L, head_dim) find among keys and values, with the same shape."""
        ...


class Replace(Protocol):
    """Makes the layer that takes the place of a linear one."""

    def __call__(self, layer: nn.Linear, *, bias: Tensor | None = None, gelu: bool = False) -> nn.Module:
        """bias: in place of the layer's own. gelu: with a tanh-GELU after it."""
        ...


class LayerCache:
    """Keys and values of one block: (B, H, length, head_dim) each. Fewer rows than B may be in use."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.filled = 0
        self.is_closed = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Tokens see all that is stored and themselves."""
        return attend(q, *self.append(k, v))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new tokens (B, H, L, head_dim) and return everything stored so far and them, if possible as views.

        Raises ValueError when the cache is full: it was made for a shorter sequence.
        """
        rows, old = len(keys), self.filled
        if self.is_closed:
            return (torch.cat([self.keys[:rows, :, :old], keys], dim=2),
                    torch.cat([self.values[:rows, :, :old], values], dim=2))
        end = old + keys.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"cache of {self.keys.shape[2]} tokens cannot take {end}: one cache serves one generation")
        self.keys[:rows, :, old:end] = keys
        self.values[:rows, :, old:end] = values
        self.filled = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def branch(self, rows: int) -> None:
        """Let the next `rows` rows go on from what the first `rows` have stored."""
        for stored in (self.keys, self.values):
            stored[rows:2 * rows, :, :self.filled] = stored[:rows, :, :self.filled]

    def continue_from(self, other: LayerCache, rows: int, count: int) -> None:
        """Begin with what the first `rows` rows of another cache have stored, each `count` times."""
        self.filled = other.filled
        for own, stored in ((self.keys, other.keys), (self.values, other.values)):
            own[:rows * count, :, :self.filled] = stored[:rows, :, :self.filled].repeat_interleave(count, 0)


class KVCache:
    """One `LayerCache` a block.

    All in one allocation: so large a block goes back to the system as a whole before the decoder needs memory. On a CPU
    a large one has the system take back what came before it in pieces and would lie beside it: around the first level,
    which holds the prefix, and before the last. At every level that would cost a generation 4 % of its time.
    """

    def __init__(self, depth: int, batch: int, heads: int, length: int, head_dim: int, dtype: torch.dtype,
                 device: torch.device) -> None:
        memory = torch.empty(depth, 2, batch, heads, length, head_dim, dtype=dtype, device=device)
        self.is_large = device.type == "cpu" and memory.nbytes >= LARGE
        self.layers = [LayerCache(keys, values) for keys, values in memory]

    def branch(self, rows: int) -> None:
        """Let twice the rows go on from what is stored (`LayerCache.branch`)."""
        for layer in self.layers:
            layer.branch(rows)

    def continue_from(self, other: KVCache, rows: int, count: int) -> None:
        """Begin with what another cache holds (`LayerCache.continue_from`)."""
        for own, layer in zip(self.layers, other.layers, strict=True):
            own.continue_from(layer, rows, count)

    def start_level(self, level: int, last: bool) -> None:
        """To be called before every level. Of the last one's tokens, a third of all, nothing is stored: none follow."""
        if self.is_large and (level <= 1 or last):
            return_freed_memory()
        for layer in self.layers:
            layer.is_closed = last


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
        self.packed_qkv: nn.Module | None = None  # in place of qkv and its biases, see `replace_linears`

    def forward(self, x: Tensor, rope: Tensor, context: Context, queries: slice = slice(None)) -> Tensor:
        """x: (B, L, C); rope: rotations (L, head_dim/2, 2), or (B, L, head_dim/2, 2) where rows differ.

        context: what the tokens see. queries: which of them to compute, all by default.
        """
        qkv = F.linear(x, self.qkv.weight, self.qkv_bias()) if self.packed_qkv is None else self.packed_qkv(x)
        qkv = rearrange(qkv, "b l (heads d) -> b l heads d", heads=3 * self.num_heads)
        qk, v = qkv.split([2 * self.num_heads, self.num_heads], dim=2)
        qk = rearrange(self.positioned(qk, rope), "b l heads d -> b heads l d")
        q, k = qk.chunk(2, dim=1)
        attended = context.attend(q[:, :, queries], k, rearrange(v, "b l heads d -> b heads l d"))
        return self.out(rearrange(attended, "b heads l d -> b l (heads d)"))

    def replace_linears(self, replace: Replace) -> None:
        """For inference: put other layers in place of the linear ones."""
        self.packed_qkv = replace(self.qkv, bias=self.qkv_bias())
        self.qkv = self.q_bias = self.v_bias = None
        self.out = replace(self.out)

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


class BlockCausal:
    """The context of training: each level, a stretch of the sequence, sees itself and those before it.

    One call a level: no mask of L² entries, no work on what would be masked (two fifths of the published sequence), and
    the kernels that know no masks (benchmarks/bench_attention.py).
    """

    def __init__(self, levels: Sequence[int], recomputed: bool = False) -> None:
        """levels: their lengths, all tokens together. recomputed: the forward pass is under `checkpoint`, which must
        see what is kept for the backward pass."""
        self.levels, self.recomputed = list(levels), recomputed

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries of a level find what its own and earlier tokens hold."""
        if q.requires_grad and torch.is_grad_enabled() and not (self.recomputed or torch.compiler.is_compiling()):
            return LevelByLevel.apply(q, k, v, self.levels)
        return torch.cat([attend(*parts) for _, *parts in by_level(q, k, v, self.levels)], dim=2)


def by_level(q: Tensor, k: Tensor, v: Tensor, levels: Sequence[int]) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Of each level its place in the sequence, its queries, and the keys and values that they may see."""
    for length, end in zip(levels, accumulate(levels), strict=True):
        yield slice(end - length, end), q[:, :, end - length:end], k[:, :, :end], v[:, :, :end]


class LevelByLevel(torch.autograd.Function):
    """Attention of all levels, whose gradients are added up in place.

    Autograd on its own makes each level's gradient of the keys and values as long as the whole sequence, filled up with
    zeros, and adds those: of ten levels, more than the attention itself writes.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, levels: Sequence[int]) -> Tensor:
        with torch.enable_grad():  # a graph for each level alone
            ctx.parts = []
            for own, *parts in by_level(q, k, v, levels):
                leaves = [part.detach().requires_grad_() for part in parts]
                ctx.parts.append((own, leaves, attend(*leaves)))
        return torch.cat([found.detach() for *_, found in ctx.parts], dim=2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        parts, ctx.parts = ctx.parts, None  # so that each level's memory is free after its turn
        of_queries, of_keys, of_values = [], None, None
        while parts:
            own, leaves, found = parts.pop()
            q, k, v = torch.autograd.grad(found, leaves, gradient[:, :, own])
            of_queries.append(q)
            if of_keys is None:  # of the last level, which sees all
                of_keys, of_values = k, v
            else:
                of_keys[:, :, :own.stop] += k
                of_values[:, :, :own.stop] += v
        return torch.cat(of_queries[::-1], dim=2), of_keys, of_values, None


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
