"""A picture on its way through the model: its windows, what each of them sees, and the noise each of them gets."""
from __future__ import annotations

import zlib
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import VARSRConfig
from models.varsr import RefinerNoise
from pictures.bicubic import PictureSource, upsample_region

from .windows import MIN_OVERLAP, Window, WindowGrid

DECODING_OVERLAP = 0.5  # of neighbouring decoded windows
DECODING_EDGE = 0.1  # share of a decoded window's side at each end that serves as context only


class LatentStore(Protocol):
    """Latents (c, N, N) float32 by window number."""

    def __contains__(self, index: int) -> bool: ...

    def __getitem__(self, index: int) -> Tensor: ...

    def __setitem__(self, index: int, latent: Tensor) -> None: ...


class TiledPicture:
    """A result of `size` (height, width) pixels, covered by model windows on the latent grid.

    The grid may reach past the picture's right and bottom edge, by less than one cell, or up to one window where the
    picture is smaller; the guide repeats its edge pixels there. `decoding` is the grid of the windows that the merged
    latent is decoded in: denser, since a decoded window depends on its surroundings, most of all at its edges, and
    decoding costs a fraction of generating. `latents[side]`: the windows' latents after the scale
    of that side; the last one's are the finished ones.
    """

    def __init__(self, source: PictureSource, size: tuple[int, int], config: VARSRConfig,
                 overlap: float = MIN_OVERLAP, latents: dict[int, LatentStore] | None = None) -> None:
        self.source, self.config = source, config
        self.height, self.width = size
        self.factor = config.vqvae.downsampling
        cells = [max(-(-side // self.factor), config.vqvae.side) for side in size]
        side = config.vqvae.side
        self.grid = WindowGrid(*cells, side, overlap)
        self.decoding = WindowGrid(*cells, side, DECODING_OVERLAP, round(DECODING_EDGE * side))
        self.latents = latents if latents is not None else {config.vqvae.side: {}}

    @property
    def finished(self) -> LatentStore:
        """The windows' finished latents."""
        return self.latents[self.config.vqvae.side]

    def guide(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Part (3, height, width) of the bicubically enlarged LR picture in [0, 1]; edge pixels go on past edges."""
        inside = min(height, self.height - top), min(width, self.width - left)
        part = upsample_region(self.source, (self.height, self.width), top, left, *inside)
        return F.pad(part[None], (0, width - inside[1], 0, height - inside[0]), mode="replicate")[0]

    def window_guide(self, place: Window) -> Tensor:
        """What a window sees: (3, S, S)."""
        size = self.config.image_size
        return self.guide(place.top * self.factor, place.left * self.factor, size, size)


def place_seed(seed: int, *place: int) -> int:
    """A seed of its own for each place, the same in whichever batch and process it is used."""
    return zlib.crc32("/".join(map(str, (seed, *place))).encode())


def refiner_noise(config: VARSRConfig, seed: int, windows: list[Window], steps: int) -> RefinerNoise:
    """Refiner noise of a batch of windows, cut from one field over the whole picture.

    Overlapping windows get the same noise in the cells they share: their latents then agree in it, and merging does
    not average it away, which would leave the overlaps smoother than the rest.
    """
    side, channels = config.vqvae.side, config.vqvae.latent_channels
    noise = torch.stack([_field(seed, window.top, window.left, side, steps + 1, channels) for window in windows], dim=1)
    return RefinerNoise(noise[0], noise[1:])


def _field(seed: int, top: int, left: int, side: int, layers: int, channels: int) -> Tensor:
    """Cells [top, top + side) x [left, left + side) of the noise field: (layers, side * side, channels)."""
    def block(row: int, column: int) -> Tensor:
        generator = torch.Generator().manual_seed(place_seed(seed, row, column))
        return torch.randn(layers, side, side, channels, generator=generator)
    rows = range(top // side, (top + side - 1) // side + 1)
    columns = range(left // side, (left + side - 1) // side + 1)
    field = torch.cat([torch.cat([block(row, column) for column in columns], dim=2) for row in rows], dim=1)
    y, x = top % side, left % side
    return field[:, y:y + side, x:x + side].flatten(1, 2)
