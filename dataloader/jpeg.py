"""JPEG's loss on tensors, with a quality per sample: what baseline libjpeg does between pixels and pixels.

Colour conversion, 4:2:0 chroma, 8 x 8 DCT and quantisation with the standard's tables (ITU-T T.81, annexes A and K;
JFIF for the colour conversion); the lossless coding is left out.
"""
from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pictures.rgb import BT601

LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99) + (99,) * 32
BLOCK = 8
CENTRE = 128.0
HALF = 1e-4  # above float32's error: sums of integers fall on halves, and no processor shall decide which way they go
TO_YCBCR = (BT601, (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


@cache
def constant(values: tuple, device: torch.device) -> Tensor:
    """A float32 constant on a device: copied there once, because a copy makes the host wait."""
    return torch.tensor(values, dtype=torch.float32, device=device)


@cache
def _dct_matrix(device: torch.device) -> Tensor:
    """Orthonormal DCT-II of 8 points."""
    k, n = torch.meshgrid(torch.arange(BLOCK), torch.arange(BLOCK), indexing="ij")
    matrix = torch.cos((2 * n + 1) * k * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)


def quantization_tables(base: tuple[int, ...], quality: Tensor) -> Tensor:
    """libjpeg's scaling of a table for qualities (B,) in 1..100: (B, 8, 8)."""
    scale = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)[:, None, None]
    table = constant(base, quality.device).view(BLOCK, BLOCK)
    return torch.floor((table * scale + 50) / 100).clamp(1, 255)


def _rounded(levels: Tensor) -> Tensor:
    """Whole levels; halves go up, as in libjpeg's fixed-point arithmetic."""
    return torch.floor(levels + (0.5 + HALF))


def _through_dct(plane: Tensor, table: Tensor) -> Tensor:
    """Quantise a plane (B, H, W), sides multiples of 8, in the DCT domain; integer levels in and out."""
    matrix = _dct_matrix(plane.device)
    rows, columns = plane.shape[-2] // BLOCK, plane.shape[-1] // BLOCK
    blocks = (plane - CENTRE).unflatten(1, (rows, BLOCK)).unflatten(3, (columns, BLOCK)).transpose(2, 3)
    table = table[:, None, None]
    coefficients = matrix @ blocks @ matrix.T / table
    coefficients = torch.round(coefficients + HALF * coefficients.sign()) * table  # halves go away from zero
    blocks = matrix.T @ coefficients @ matrix
    return _rounded(blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2) + CENTRE).clamp(0, 255)


def _convert(image: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("oc,bchw->bohw", constant(matrix, image.device), image)


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] after JPEG compression with qualities (B,) in 1..100; 8-bit levels.

    `quality` may lie on the CPU, whatever the pictures' device: nothing waits for it then.
    """
    height, width = images.shape[-2:]
    step = 2 * BLOCK
    levels = (images.float().clamp(0, 1) * 255).round()
    levels = F.pad(levels, (0, -width % step, 0, -height % step), mode="replicate")
    ycbcr = _convert(levels, TO_YCBCR)
    luma, chroma = _rounded(ycbcr[:, 0]), _rounded(ycbcr[:, 1:] + CENTRE)
    chroma = F.avg_pool2d(chroma, 2).round().clamp(0, 255)  # exact halves: up and down alike, as libjpeg has them
    quality = quality.float().round()
    tables = [quantization_tables(base, quality).to(images.device, non_blocking=True)
              for base in (LUMINANCE, CHROMINANCE)]
    luma = _through_dct(luma, tables[0])
    chroma = _through_dct(chroma.flatten(0, 1), tables[1].repeat_interleave(2, dim=0)).unflatten(0, (-1, 2))
    # libjpeg's "fancy" up-sampling weighs neighbours 3:1, which is what bilinear interpolation does at a factor of 2
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear", align_corners=False)
    rgb = _convert(torch.cat([luma[:, None], chroma - CENTRE], dim=1), TO_RGB)
    return _rounded(rgb[..., :height, :width]).clamp(0, 255) / 255
