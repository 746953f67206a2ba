"""The decoder's last steps, correction (`models/lr_features.py`) and detail (`models/detail.py`), over a picture.

Decoded windows depend on all that they hold (norms, attention), so they overlap and are blended. Correction and detail
are convolutions alone: made after blending, every pixel is finished once instead of in every window that holds it, and
has no seams.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.varsr import VARSR

from .latents import LatentStore
from .merging import merged_latent
from .tiles import TiledPicture

PART = 512  # rows and columns finished at a time, so that memory does not grow with the picture


class Finisher:
    """Finishes decoded rows of one picture; `reach` is how many rows on both sides a row depends on."""

    def __init__(self, model: VARSR, picture: TiledPicture, latents: LatentStore, fidelity: float) -> None:
        self.model, self.picture, self.latents, self.fidelity = model, picture, latents, fidelity
        self.reach = _whole_cells(model.finishing_reach(fidelity), picture.factor)

    def __call__(self, rows: Tensor, top: int) -> Tensor:
        """Decoded rows (3, h, W) from `top` on, finished, in [0, 1]. The first and last `reach` of them are only right
        at the picture's edges."""
        factor, (height, width) = self.picture.factor, rows.shape[1:]
        above = top % factor  # rows that the first cell has above the first row: context that nobody sees
        cells = merged_latent(self.picture, self.latents, top // factor, -(-(above + height) // factor))
        parts = []
        for left in range(0, width, PART):
            first, last = max(left - self.reach, 0), min(left + PART + self.reach, width)
            inside = cells[:, :, first // factor:-(-last // factor)]
            guide = self.picture.guide(top, first, height, last - first)
            part = self._finish(rows[:, :, first:last], guide, inside, above)
            parts.append(part[:, :, left - first:left - first + PART])
        return torch.cat(parts, dim=2)

    def _finish(self, decoded: Tensor, guide: Tensor, cells: Tensor, above: int) -> Tensor:
        """One part, continued to whole cells by its edge pixels."""
        height, width = decoded.shape[1:]
        factor = self.picture.factor
        below, right = cells.shape[1] * factor - above - height, cells.shape[2] * factor - width
        padded = [F.pad(each[None], (0, right, above, below), mode="replicate") for each in (decoded, guide)]
        finished = self.model.finish(*padded, cells[None], self.fidelity)[0].cpu()
        return finished[:, above:above + height, :width]


def _whole_cells(pixels: int, factor: int) -> int:
    return -(-pixels // factor) * factor
