"""NIQE: how far a picture's local statistics are from those of pristine photographs (Mittal et al. 2013).

The pristine ones are published (LIVE, University of Texas at Austin; free to use with a citation) and are taken from an
installed package that has brought them; they are not part of this repository.
"""
from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError

from .full_reference import full_range_luma, gaussian_taps, smooth

FEATURES = 36
# Packages that bring the file, and its place in them; none of them has to be importable.
SHIPPED = (("mmagic", "evaluation/metrics/niqe_pris_params.npz"), ("basicsr", "metrics/niqe_pris_params.npz"))
REMEDY = "pip install --no-deps mmagic"
MSCN_SIDE, MSCN_SIGMA, MSCN_CONSTANT = 7, 7 / 6, 1.0
# What a mean is raised by, as a share: a flat pixel is then darker than its surround, as in pyiqa, whose taps add up to
# that much more than 1. Without it the sign of a flat pixel, which NIQE counts, would be that of a rounding error.
MEAN_RAISED = 1e-8
NIQE_BLOCK = 96
HALVING_REACH = 4  # pixels that a cubic kernel stretched by two reaches
HALF_LEVEL = 1e-9  # more than the error of a sum of weighted levels, which would decide where halves go
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours whose products are looked at
SHAPES = (0.2, 10.0, 0.001)  # first and last shape parameter that is tried, and the step


@dataclass(frozen=True)
class Pristine:
    """Mean (36,) and covariance (36, 36) of the features of pristine photographs, float64."""

    mean: Tensor
    covariance: Tensor


def find_parameters() -> Path | None:
    """The parameter file of an installed package; nothing is imported."""
    for package, inside in SHIPPED:
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (path := Path(folder) / inside).is_file():
                return path
    return None


def load_parameters(path: Path) -> Pristine:
    """Read a parameter file. Raises ValueError naming it if it holds something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = arrays["mu_pris_param"], arrays["cov_pris_param"]
        return Pristine(torch.from_numpy(mean.astype(np.float64).reshape(FEATURES)),
                        torch.from_numpy(covariance.astype(np.float64).reshape(FEATURES, FEATURES)))
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: not NIQE's parameters ({error})") from error


def mscn(plane: Tensor) -> Tensor:
    """Mean-subtracted, contrast-normalised (H, W) of a gray plane (H, W) in 0..255, edges replicated."""
    taps, reach = gaussian_taps(MSCN_SIDE, MSCN_SIGMA, plane), MSCN_SIDE // 2
    padded = F.pad(plane[None, None], (reach,) * 4, mode="replicate")
    mean = smooth(padded, taps)[0, 0]
    deviation = (smooth(padded.square(), taps)[0, 0] - mean.square()).abs().sqrt()
    return (plane - mean * (1 + MEAN_RAISED)) / (deviation + MSCN_CONSTANT)


def mirrored(plane: Tensor, before: int, down: int, right: int) -> Tensor:
    """A plane (H, W) continued as in a mirror: `before` pixels at the top and left, the others at the end."""
    for axis, after in ((0, down), (1, right)):
        length = plane.shape[axis]
        places = torch.arange(-before, length + after, device=plane.device) % (2 * length)
        plane = plane.index_select(axis, torch.minimum(places, 2 * length - 1 - places))
    return plane


def blocks_of(plane: Tensor, side: int) -> Tensor:
    """Blocks (N, side, side) of a plane whose sides are multiples of `side`, row by row."""
    return plane.unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def niqe(image: Tensor, pristine: Pristine) -> float:
    """NIQE of a picture (3, H, W) in [0, 1] against the statistics of pristine photographs; lower is better.

    Raises ValueError for a picture with fewer than two blocks of 96x96 pixels, or a flat one.
    """
    plane = (full_range_luma(image) - HALF_LEVEL).round()  # halves down, which is nearest to pyiqa's float32
    height, width = (side // NIQE_BLOCK * NIQE_BLOCK for side in plane.shape)
    if height * width < 2 * NIQE_BLOCK ** 2:
        raise UserError(f"NIQE needs two blocks of {NIQE_BLOCK}x{NIQE_BLOCK} pixels, "
                         f"got {plane.shape[1]}x{plane.shape[0]}")
    plane = plane[:height, :width]
    features = torch.cat([_block_features(blocks_of(mscn(scale), NIQE_BLOCK // factor))
                          for factor, scale in ((1, plane), (2, _halved(plane)))], dim=1)  # (N, 36)
    mean = features.nanmean(dim=0)
    features = features[features.isfinite().all(dim=1)]
    if len(features) < 2:
        raise UserError("NIQE has nothing to measure: the picture is flat")
    difference = pristine.mean.to(mean) - mean
    inverse = torch.linalg.pinv((pristine.covariance.to(mean) + torch.cov(features.T)) / 2)
    return (difference @ inverse @ difference).clamp(min=0).sqrt().item()


def _halved(plane: Tensor) -> Tensor:
    """Half the size, bicubic as MATLAB's imresize: anti-aliased, mirrored at the edges."""
    padded = mirrored(plane, HALVING_REACH, HALVING_REACH, HALVING_REACH)
    half = F.interpolate(padded[None, None], scale_factor=0.5, mode="bicubic", antialias=True)[0, 0]
    edge = HALVING_REACH // 2
    return half[edge:-edge, edge:-edge]


def _block_features(blocks: Tensor) -> Tensor:
    """18 features (N, 18) of blocks (N, S, S): shape and spread of the values, and of neighbours' products."""
    shape, left, right = _generalised_gaussian(blocks)
    features = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = _generalised_gaussian(blocks * blocks.roll(shift, dims=(1, 2)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        features += [shape, mean, left, right]
    return torch.stack(features, dim=1)


def _generalised_gaussian(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape and left and right scale (N,) of an asymmetric generalised Gaussian fitted by moments to each row."""
    values = values.flatten(1)

    def deviation(side: Tensor) -> Tensor:
        return ((values * side).square().sum(1) / side.sum(1)).sqrt()
    left, right = deviation(values < 0), deviation(values > 0)
    skew = left / right
    ratio = values.abs().mean(1).square() / values.square().mean(1)
    ratio = ratio * (skew ** 3 + 1) * (skew + 1) / (skew ** 2 + 1) ** 2
    first, last, step = SHAPES
    shapes = torch.arange(round((last - first) / step) + 1, dtype=values.dtype, device=values.device) * step + first
    expected = (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()
    shape = shapes[(expected - ratio[:, None]).abs().argmin(dim=1)]
    scale = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    return shape, left * scale, right * scale
