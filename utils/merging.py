"""Windows' latents merged into those of the picture."""
from __future__ import annotations

import torch
from torch import Tensor

from .latents import LatentStore
from .tiles import TiledPicture


def merged_latent(picture: TiledPicture, latents: LatentStore, top: int, height: int | None = None) -> Tensor:
    """`height` cells from row `top` on (by default a window's), (c, height, w): every window's latent by its share,
    summed. Rows past the grid are zero."""
    grid = picture.grid
    height = grid.window if height is None else height
    merged = torch.zeros(picture.config.vqvae.latent_channels, height, grid.columns.length)
    for row in grid.rows.reaching(top, top + height):
        start = grid.rows.starts[row]
        first, last = max(start, top), min(start + grid.window, top + height)
        own, cells = slice(first - start, last - start), slice(first - top, last - top)
        down = grid.rows.shares[row][own, None]
        for window in grid.row(row):
            share = down * grid.columns.shares[window.column]
            merged[:, cells, window.left:window.left + grid.window] += latents[window.index][:, own] * share
    return merged
