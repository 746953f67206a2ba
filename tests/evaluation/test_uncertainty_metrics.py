"""How well errors are foreseen, against brute force and cases that are known."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.metrics.uncertainty import coverage, ranks, sparsification, sparsification_error, spearman


def values(count: int, seed: int, levels: int | None = None) -> torch.Tensor:
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return drawn if levels is None else (drawn * levels).floor()


@pytest.mark.parametrize("levels", [None, 5])
def test_ranks_by_counting(levels: int | None) -> None:
    row = values(60, 1, levels)
    expected = [(row < each).sum() + ((row == each).sum() - 1) / 2 for each in row]
    torch.testing.assert_close(ranks(row), torch.stack(expected).double())


def test_spearman_is_the_correlation_of_ranks() -> None:
    a, b = values(200, 2), values(200, 3)
    b = b + a
    expected = np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]
    assert spearman(a, b) == pytest.approx(expected, abs=1e-9)
    assert spearman(a, a.exp()) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, torch.ones(200)) == 0


def test_sparsification_by_sorting() -> None:
    estimate, error = values(101, 4), values(101, 5) ** 2
    curve = sparsification(estimate, error, steps=10)
    order = sorted(range(101), key=lambda i: float(estimate[i]))
    for i, value in enumerate(curve):
        kept = [float(error[j]) for j in order[:101 * (10 - i) // 10]]
        assert float(value) == pytest.approx(np.mean(kept) / float(error.double().mean()), rel=1e-6)
    assert float(curve[0]) == pytest.approx(1)


def test_an_oracle_has_no_sparsification_error_and_the_opposite_the_largest() -> None:
    error = values(500, 6) ** 3
    assert sparsification_error(error, error) == pytest.approx(0, abs=1e-12)
    assert sparsification_error(error * 7 + 1, error) == pytest.approx(0, abs=1e-12)
    unknowing = sparsification_error(values(500, 7), error)
    assert 0 < unknowing < sparsification_error(-error, error)


def test_sparsification_of_one_pixel_and_of_no_error() -> None:
    assert sparsification_error(torch.ones(1), torch.ones(1)) == 0
    assert sparsification_error(values(50, 8), torch.zeros(50)) == 0


def test_coverage_counts() -> None:
    assert coverage(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 5])) == 0.5
