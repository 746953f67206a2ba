"""FastVAR token pruning beyond its reference case: nothing dropped is nothing changed, and every token is covered."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import LayerCache
from models.config import GenerationConfig
from models.fastvar import MODES, SEPARATE, FastVARConfig, TokenPruner, resize_map, select
from models.transformer import Modulation
from models.varsr import VARSR

OPTIONS = GenerationConfig(cfg=2.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", [{"drop_ratios": {2: 0.0, 4: 0.0}}, {"drop_ratios": {4: 0.9}, "min_keep": 16},
                                    {"drop_ratios": {4: 0.9}, "later_layer_start": 2, "min_keep": 1}])
def test_nothing_dropped_changes_no_bit(model: VARSR, pictures: torch.Tensor, mode: str, config: dict) -> None:
    pruned = model.generate(pictures, options=OPTIONS, fastvar=FastVARConfig(mode=mode, **config))
    assert torch.equal(pruned, model.generate(pictures, options=OPTIONS))


@pytest.mark.parametrize("mode", MODES)
def test_pruning_is_real_and_forgets_between_generations(model: VARSR, pictures: torch.Tensor, mode: str) -> None:
    config = FastVARConfig({4: 0.5}, later_layer_start=1, min_keep=1, mode=mode)
    lengths, place = [], []

    class Watched(TokenPruner):
        def run(self, block, layer, *args, **options):
            place[:] = self.scales[self.level], layer
            return super().run(block, layer, *args, **options)

    class WatchedCache(LayerCache):
        def append(self, keys, values):
            lengths.append((*place, keys.shape[2]))
            return super().append(keys, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.fastvar.TokenPruner", Watched)
        patch.setattr("models.attention.LayerCache", WatchedCache)
        first = model.generate(pictures, options=OPTIONS, fastvar=config)
    assert (4, 0, 16) in lengths and (4, 1, 8) in lengths and (2, 1, 4) in lengths
    assert torch.equal(first, model.generate(pictures, options=OPTIONS, fastvar=config))
    assert not torch.equal(first, model.generate(pictures, options=OPTIONS))


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_does_not_depend_on_its_batch(model: VARSR, pictures: torch.Tensor, mode: str) -> None:
    config = FastVARConfig({2: 0.4, 4: 0.6}, later_layer_start=0, min_keep=1, mode=mode)
    together = model.generate(pictures, options=OPTIONS, seed=[5, 6, 7], fastvar=config)
    alone = model.generate(pictures[1:2], options=OPTIONS, seed=[6], fastvar=config)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_class_to_image_can_be_pruned(mode: str) -> None:
    import dataclasses

    config = small_model().config
    transformer = dataclasses.replace(config.transformer, prefix=None, class_rows=4)
    model = VARSR(dataclasses.replace(config, transformer=transformer)).eval()
    pruned = model.generate(labels=torch.tensor([0, 2]), fastvar=FastVARConfig({2: 0.5, 4: 0.5}, 0, 1, mode))
    assert pruned.shape == (2, 3, config.image_size, config.image_size)


@settings(max_examples=40, deadline=None)
@given(side=st.integers(2, 7), batch=st.integers(1, 3), ratio=st.floats(0, 0.99), min_keep=st.integers(1, 20))
def test_kept_and_restored_cover_every_token(side: int, batch: int, ratio: float, min_keep: int) -> None:
    """Kept tokens get the new value 1, all others the old value 2, in the numbers that the plan says."""
    config = FastVARConfig({side: ratio}, later_layer_start=0, min_keep=min_keep, mode=SEPARATE)
    pruner = TokenPruner(config, (1, side))
    tokens = torch.randn(batch, side * side, 3, generator=torch.Generator().manual_seed(side))

    class Added:
        """A block whose parts add nothing and 2 at the first level, 1 at the second."""

        def before_attention(self, x: torch.Tensor, parts: Modulation) -> torch.Tensor:
            return x

        def attend(self, chosen: torch.Tensor, parts: Modulation, rope: torch.Tensor, context: None) -> torch.Tensor:
            return torch.zeros_like(chosen)

        before_feed = before_attention

        def feed(self, chosen: torch.Tensor, parts: Modulation) -> torch.Tensor:
            return torch.full_like(chosen, 1 if pruner.level else 2)
    modulation, rope = torch.ones(batch, 6, 1, 3), torch.ones(side * side, 1)
    for level, x in enumerate((tokens[:, :1], tokens)):
        pruner.start_level(level)
        if pruner.concerns(0):
            result = (pruner.run(Added(), 0, x, modulation, rope, None) - x).round()
    kept = config.kept(side, 0)
    assert kept == min(max(side * side - int(side * side * ratio), min_keep), side * side)
    assert ((result == 1).sum(1) == kept).all() and ((result == 2).sum(1) == side * side - kept).all()
    assert not pruner.previous


def test_selection_against_a_full_sort() -> None:
    tokens = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    values = tokens.double().numpy()
    distance = ((values - values.mean(1, keepdims=True)) ** 2).sum(-1)
    expected = np.sort(np.argsort(-distance, axis=1)[:, :20], axis=1)
    assert (select(tokens, 20).numpy() == expected).all()


def test_maps_are_resized_by_area() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    expected = [[2.5, 4.5], [10.5, 12.5]]
    torch.testing.assert_close(resize_map(tokens, 2).view(2, 2), torch.tensor(expected))


@pytest.mark.parametrize("values", [{"drop_ratios": {4: 1.0}}, {"drop_ratios": {4: -0.1}}, {"min_keep": 0},
                                    {"later_layer_start": -1}, {"mode": "both"}])
def test_settings_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="FastVAR mode|at least"):
        FastVARConfig(**values)


def test_ratios_belong_to_the_last_scales() -> None:
    config = FastVARConfig.for_last((1, 2, 3, 5), (0.4, 0.3), min_keep=2)
    assert config.drop_ratios == {3: 0.4, 5: 0.3}
    assert [(p.side, p.layers, p.kept, p.total) for p in config.plan((1, 2, 3, 5), 6)] == [(3, 3, 6, 9), (5, 3, 18, 25)]
    with pytest.raises(ValueError, match="at most 3"):
        FastVARConfig.for_last((1, 2, 3, 5), (0.1,) * 4)
