"""Scale-aligned rotary positions (VARSR, section 3.3).

Every scale's grid spans the same extent, so that a cell of a coarse scale and the cells of a fine scale (and of the
LR prefix) that cover the same place carry the same angles.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
