"""Sampling against brute force and its properties."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sampling import Noise, filter_logits, guide, gumbel_mixture, in_cache, sample_codes


def brute_force_kept(row: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    """Codes that survive: walk down from the likeliest until k codes or the mass are reached."""
    order = row.argsort(descending=True).tolist()
    if top_k:
        order = order[:top_k]
    probabilities = row[order].softmax(0).tolist()
    kept, mass = set(), 0.0
    for code, probability in zip(order, probabilities):
        if mass >= top_p and top_p < 1:
            break
        kept.add(code)
        mass += probability
    return kept


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), top_k=st.integers(0, 12), top_p=st.floats(0.05, 1.0))
def test_filter_keeps_what_brute_force_keeps(seed: int, top_k: int, top_p: float) -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed)) * 2
    filtered = filter_logits(logits, top_k, top_p)
    for row, result in zip(logits, filtered):
        assert set(torch.nonzero(result > -torch.inf).flatten().tolist()) == brute_force_kept(row, top_k, top_p)


def test_top_k_of_one_is_the_arg_max() -> None:
    logits = torch.randn(2, 5, 7)
    assert torch.equal(sample_codes(logits, 1, 0.5, Noise([0, 1], torch.device("cpu"))), logits.argmax(-1))


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(1, 40_000, 4)
    codes = sample_codes(logits, 0, 1.0, Noise([3], torch.device("cpu")))
    found = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
    torch.testing.assert_close(found, probabilities, atol=0.01, rtol=0)


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (500, 1.0), (900, 0.9)])
def test_codes_are_where_the_uniform_numbers_fall(top_k: int, top_p: float) -> None:
    """Of more rows than are looked at at a time."""
    logits = torch.randn(2, 70, 4096, generator=torch.Generator().manual_seed(0)) * 3
    places = Noise([1, 2], torch.device("cpu")).uniform(70)
    cumulative = filter_logits(logits, top_k, top_p).double().softmax(-1).cumsum(-1)
    codes = sample_codes(logits, top_k, top_p, Noise([1, 2], torch.device("cpu")))
    assert codes.shape == (2, 70) and len(in_cache(logits.flatten(0, 1))) > 2
    below = torch.where(codes > 0, cumulative.gather(-1, (codes - 1).clamp(min=0)[..., None])[..., 0], 0)
    above = cumulative.gather(-1, codes[..., None])[..., 0]
    assert bool((below <= places + 1e-5).all()) and bool((places <= above + 1e-5).all())
    if top_k:
        assert bool((codes[..., None] == logits.topk(top_k).indices).any(-1).all())


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = torch.randn(3, 6, 9)
    together = sample_codes(logits, 5, 0.9, Noise([7, 8, 9], torch.device("cpu")))
    alone = sample_codes(logits[1:2], 5, 0.9, Noise([8], torch.device("cpu")))
    assert torch.equal(together[1:2], alone)


def test_guidance_formula() -> None:
    cond, uncond = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(guide(cond, uncond, 2.5), 3.5 * cond - 2.5 * uncond)
    assert guide(cond, None, 2.5) is cond


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_gumbel_mixture_is_a_distribution_that_sharpens(ratio: float) -> None:
    weights = gumbel_mixture(torch.randn(2, 8, 16), ratio, 0, 1.0, Noise([0, 1], torch.device("cpu")))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8))
    if ratio == 1.0:
        assert weights.max(-1).values.mean() > 0.95


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("top_k, top_p", [(1, 1.0), (4, 1.0), (0, 0.6), (5, 0.6)])
def test_a_mixture_is_of_the_kept_codes_in_the_proportions_of_all(top_k: int, top_p: float, ratio: float) -> None:
    logits = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    mixture, whole = (gumbel_mixture(logits.double(), ratio, *kept, Noise([0, 1], torch.device("cpu")))
                      for kept in ((top_k, top_p), (0, 1.0)))
    for row, weights, unfiltered in zip(logits.flatten(0, 1), mixture.flatten(0, 1), whole.flatten(0, 1), strict=True):
        kept = sorted(brute_force_kept(row, top_k, top_p))
        assert weights[kept].sum() == pytest.approx(1) and weights.count_nonzero() <= len(kept)
        torch.testing.assert_close(weights[kept], unfiltered[kept] / unfiltered[kept].sum())
