"""PIQE: how many blocks of a picture look distorted (Venkatanath et al. 2015)."""
from __future__ import annotations

import torch
from torch import Tensor

from .full_reference import PEAK, gray
from .niqe import blocks_of, mirrored, mscn

PIQE_BLOCK, PIQE_SEGMENT = 16, 6
ACTIVE_VARIANCE, IMPAIRED_DEVIATION, PIQE_CONSTANT = 0.1, 0.1, 1.0
# Columns of a block's 16; the published function takes its surround from these, and values are compared with it
CENTER_COLUMNS, NO_SURROUND_COLUMNS = (7, 8), (7, 9)


def piqe(image: Tensor) -> float:
    """PIQE of a picture (3, H, W) in [0, 1], of any size: 0 (clean) to 100 (every active block is impaired)."""
    plane = gray(image)
    height, width = plane.shape
    plane = (plane * PEAK / plane.max().clamp(min=1)).round()
    plane = mirrored(plane, 0, -height % PIQE_BLOCK, -width % PIQE_BLOCK)
    blocks = blocks_of(mscn(plane), PIQE_BLOCK)
    variance = blocks.flatten(1).var(dim=1)
    active = variance > ACTIVE_VARIANCE
    if not active.any():
        return 100.0  # nothing to see is the worst quality
    blocks, variance = blocks[active], variance[active]
    impairment = _has_artefact(blocks) * (1 - variance) + _is_noisy(blocks) * variance
    return ((impairment.sum() + PIQE_CONSTANT) / (len(blocks) + PIQE_CONSTANT)).item() * 100


def _has_artefact(blocks: Tensor) -> Tensor:
    """Which blocks (N, 16, 16) have a stretch of an edge that is nearly flat."""
    edges = torch.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], dim=1)
    segments = edges.unfold(2, PIQE_SEGMENT, 1)  # (N, 4, 11, 6)
    return (segments.std(dim=-1) < IMPAIRED_DEVIATION).flatten(1).any(dim=1)


def _is_noisy(blocks: Tensor) -> Tensor:
    """Which blocks (N, 16, 16) vary as much in their central columns as around them."""
    around = [column for column in range(PIQE_BLOCK) if column not in NO_SURROUND_COLUMNS]
    center, surround = (blocks[:, :, columns].flatten(1).std(dim=1) for columns in (list(CENTER_COLUMNS), around))
    deviation = blocks.flatten(1).std(dim=1)
    ratio = (center / surround).nan_to_num(0.0)
    difference = (deviation - ratio).abs() / torch.maximum(deviation, ratio)
    return deviation > 2 * difference
