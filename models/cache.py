"""Key/value cache of one generation: allocated once at full length, filled scale by scale."""
from __future__ import annotations

import torch
from torch import Tensor

from utils.memory import return_freed_memory

LARGE = 256 * 2 ** 20  # bytes; half a gigabyte and more at the published size


class LayerCache:
    """Keys and values of one block: (B, H, length, head_dim) each. Fewer rows than B may be in use."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.filled = 0
        self.is_closed = False

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
        """See `LayerCache.branch`."""
        for layer in self.layers:
            layer.branch(rows)

    def start_level(self, level: int, last: bool) -> None:
        """To be called before every level. Of the last one's tokens, a third of all, nothing is stored: none follow."""
        if self.is_large and (level <= 1 or last):
            return_freed_memory()
        for layer in self.layers:
            layer.is_closed = last
