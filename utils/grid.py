"""Plain picture grids, as training writes them while it runs."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def write_grid(path: Path, rows: Sequence[Tensor], gap: int = 2) -> None:
    """Write a PNG of rows of pictures; each row is (M, 3, H, W) in [0, 1], all of one size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    padded = [torch.nn.functional.pad(row.float().cpu(), (0, gap, 0, gap), value=1.0) for row in rows]
    lines = [torch.cat(list(row), dim=2) for row in padded]  # (3, H, M*W)
    sheet = torch.cat(lines, dim=1)
    pixels = sheet.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
