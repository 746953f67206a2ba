"""Cache against mask, positions, and what a token may see."""
from __future__ import annotations

import pytest
import torch

from models.attention import BlockCausal, LayerCache, attend, grid_angles, rotate
from models.config import PRESETS
from models.varsr import VARSR


@pytest.fixture()
def sequence(model: VARSR, pictures: torch.Tensor):
    transformer = model.transformer
    labels = torch.tensor([0, 1, 0])
    tokens = sum(side * side for side in transformer.scales[1:])
    inputs = torch.randn(3, tokens, model.config.vqvae.latent_channels, generator=torch.Generator().manual_seed(2))
    prefix = transformer.prefix_encoder(pictures * 2 - 1)
    return labels, inputs, prefix


def test_cached_levels_equal_the_masked_pass(model: VARSR, sequence) -> None:
    """Scale by scale with a cache and all at once under the block-causal mask are one computation."""
    transformer = model.transformer
    labels, inputs, prefix = sequence
    hidden, logits = transformer(labels, inputs, prefix)
    modulations, head = transformer.modulations(labels)
    cache = transformer.new_cache(3, torch.float32, inputs.device)
    outputs = [transformer.forward_level(transformer.start_tokens(labels, prefix), 0, modulations, cache)[:, -1:]]
    parts = inputs.split([side * side for side in transformer.scales[1:]], dim=1)
    for k, part in enumerate(parts, start=1):
        outputs.append(transformer.forward_level(transformer.scale_tokens(part, k), k, modulations, cache))
    torch.testing.assert_close(torch.cat(outputs, 1), hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(transformer.logits(hidden, head), logits)


def test_a_token_sees_its_own_and_earlier_scales_only(model: VARSR, sequence) -> None:
    labels, inputs, prefix = sequence
    _, before = model.transformer(labels, inputs, prefix)
    changed = inputs.clone()
    changed[:, -1] += 1  # one token of the last scale
    _, after = model.transformer(labels, changed, prefix)
    last = model.transformer.scales[-1] ** 2
    assert torch.equal(before[:, :-last], after[:, :-last])
    assert (before[:, -last:] != after[:, -last:]).any(-1).all()  # the whole scale sees it


def test_checkpointing_changes_nothing(sequence) -> None:
    from conftest import small_model
    model = small_model().train().requires_grad_(True)
    gradients, passes = [], []
    model.transformer.blocks[0].register_forward_pre_hook(lambda *_: passes.append(model.transformer.checkpointing))
    for checkpointing in (False, True):
        model.zero_grad()
        model.transformer.checkpointing = checkpointing
        model.transformer(*sequence)[1].square().mean().backward()
        gradients.append(model.transformer.blocks[0].attention.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert passes == [False, True, True], "what is not kept is computed again"


def test_one_head_at_a_time_agrees_with_sdpa() -> None:
    """The path for bf16 on CPUs against PyTorch's own attention in float64, on keys that a cache would hold."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16).bfloat16() for length in (5, 9, 9))
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1.0)
    torch.testing.assert_close(attend(q, k, v).double(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("levels", [(1,), (4, 1), (5, 4, 9, 16), (3, 1, 1)])
def test_attention_by_levels_is_block_causal(levels: tuple[int, ...], recomputed: bool) -> None:
    torch.manual_seed(0)
    length = sum(levels)
    q, k, v = (torch.randn(2, 3, length, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    level = [i for i, count in enumerate(levels) for _ in range(count)]
    mask = torch.tensor([[mine >= theirs for theirs in level] for mine in level])
    expected = ((q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)) @ v
    got = BlockCausal(levels, recomputed).attend(q, k, v)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(*(torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (got, expected))):
        torch.testing.assert_close(mine, theirs)


def test_rope_depends_on_relative_position_only() -> None:
    angles = grid_angles(8, 16, 10000.0, 32.0)
    torch.manual_seed(0)
    q, k = torch.randn(16), torch.randn(16)

    def score(a: int, b: int) -> float:
        turned = [rotate(x, torch.stack([angles[i].cos(), angles[i].sin()], dim=-1)) for x, i in ((q, a), (k, b))]
        return float((turned[0] * turned[1]).sum())
    assert score(9, 18) == pytest.approx(score(27, 36), abs=1e-4)
    assert score(9, 18) != pytest.approx(score(9, 27), abs=1e-3)


def test_scales_are_aligned() -> None:
    """A coarse cell stands where the top left of its fine cells does."""
    coarse, fine = grid_angles(4, 16, 10000.0, 32.0), grid_angles(8, 16, 10000.0, 32.0)
    torch.testing.assert_close(coarse.view(4, 4, -1), fine.view(8, 8, -1)[::2, ::2])


def test_a_full_cache_says_so() -> None:
    cache = LayerCache(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    cache.append(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    with pytest.raises(ValueError, match="one generation"):
        cache.append(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


@pytest.mark.parametrize("preset", ["varsr-d24", "varsr-d24-c2i", "varsr-tiny"])
def test_presets_build(preset: str) -> None:
    with torch.device("meta"):
        model = VARSR(PRESETS[preset])
    if preset == "varsr-d24":
        millions = sum(p.numel() for m in (model.transformer, model.refiner) for p in m.parameters()) / 1e6
        assert millions == pytest.approx(1101.9, abs=0.1)
        assert sum(p.numel() for p in model.vqvae.parameters()) / 1e6 == pytest.approx(108.9, abs=0.1)
