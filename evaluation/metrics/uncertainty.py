"""How well an estimate of errors knows where the errors are: rank correlation, sparsification, coverage.

Sparsification (Ilg et al. 2018, "Uncertainty estimates and multi-hypotheses networks", section 5): the pixels that are
thought worst are left out first, and the mean error of those that stay is drawn over the share that was left out. The
area between that curve and the one of an oracle, which knows the errors, as a share of the mean error, is 0 at best.
"""
from __future__ import annotations

import torch
from torch import Tensor

STEPS = 100  # of the curve


def ranks(values: Tensor) -> Tensor:
    """Ranks (M,) from 0 on of values (M,), float64; equal values share their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() + 1) / 2)[inverse]


def spearman(estimate: Tensor, error: Tensor) -> float:
    """Spearman's rank correlation of two rows of values (M,); 0 where one of them is constant."""
    a, b = (ranks(values.flatten()) for values in (estimate, error))
    a, b = a - a.mean(), b - b.mean()
    norm = a.norm() * b.norm()
    return float((a * b).sum() / norm) if norm else 0.0


def sparsification(estimate: Tensor, error: Tensor, steps: int = STEPS) -> Tensor:
    """Mean errors (steps,) of the pixels that stay when 0, 1/steps, ... of them are left out, those of the largest
    estimates first; as shares of the mean of all."""
    error = error.flatten().double()
    kept = error[estimate.flatten().argsort(stable=True)].cumsum(0)
    counts = torch.tensor([max(len(error) * (steps - i) // steps, 1) for i in range(steps)])
    return kept[counts - 1] / counts / error.mean().clamp(min=1e-12)


def sparsification_error(estimate: Tensor, error: Tensor, steps: int = STEPS) -> float:
    """The area between an estimate's curve and the oracle's."""
    return float((sparsification(estimate, error, steps) - sparsification(error, error, steps)).mean())


def coverage(bound: Tensor, error: Tensor) -> float:
    """The share of errors that are within their bounds."""
    return float((error <= bound).double().mean())
