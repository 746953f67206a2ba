"""Means with bootstrap confidence intervals (Efron's percentile method)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` pictures and its confidence interval (none of a single value)."""

    mean: float
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float], resamples: int = RESAMPLES, confidence: float = CONFIDENCE,
             seed: int = SEED) -> Estimate:
    """Mean of at least one value and its percentile interval; the same for the same values and seed."""
    if not len(values):
        raise ValueError("there is no mean of no values")
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:
        return Estimate(float(array[0]), None, None, 1)
    drawn = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    means = array[drawn].mean(axis=1)
    tail = 100 * (1 - confidence) / 2
    # actual resampled means, not values between two: one of them may be infinite (PSNR of equal pictures)
    low = np.percentile(means, tail, method="lower")
    high = np.percentile(means, 100 - tail, method="higher")
    return Estimate(float(array.mean()), float(low), float(high), len(array))
