"""Key/value cache of one generation: allocated once at full length, filled scale by scale."""
from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one block: (B, H, length, head_dim) each."""

    def __init__(self, batch: int, heads: int, length: int, head_dim: int, dtype: torch.dtype,
                 device: torch.device) -> None:
        self.keys = torch.empty(batch, heads, length, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.filled = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new tokens (B, H, L, head_dim) and return everything stored so far, as views.

        Raises ValueError when the cache is full: it was made for a shorter sequence.
        """
        end = self.filled + keys.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"cache of {self.keys.shape[2]} tokens cannot take {end}: one cache serves one generation")
        self.keys[:, :, self.filled:end] = keys
        self.values[:, :, self.filled:end] = values
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One `LayerCache` a block."""

    def __init__(self, depth: int, batch: int, heads: int, length: int, head_dim: int, dtype: torch.dtype,
                 device: torch.device) -> None:
        self.layers = [LayerCache(batch, heads, length, head_dim, dtype, device) for _ in range(depth)]
