"""Starting a training from weights of another kind: what is copied, resized, left out."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import small_class_model, small_model
from recipe import SMALL, config_weights

from models.config import PRESETS, VARSRConfig, published_size
from models.varsr import VARSR
from models.weights.save import save_pretrained
from models.weights.transfer import CLASSES, LEVELS, START, transfer_weights
from models.weights.unpickle import CheckpointError


def with_scales(config: VARSRConfig, *scales: int) -> VARSRConfig:
    return dataclasses.replace(config, vqvae=dataclasses.replace(config.vqvae, scales=scales))


def test_a_bare_var_starts_a_training(tmp_path: Path) -> None:
    """As var_d16.pth: another number of classes, no prefix encoder, no refiner, a table of positions."""
    torch.manual_seed(0)
    model = VARSR(SMALL)
    published = config_weights(SMALL)[0]
    bare = {name: tensor for name, tensor in published.items()
            if not name.startswith(("diffloss.", "decoder_norm.", "con_embedding."))}
    bare |= {"pos_1LC": torch.zeros(1, 21, 32), "class_emb.weight": torch.rand(1001, 32),
             "pos_start": torch.rand(1, 1, 32)}
    torch.save(bare, tmp_path / "var_d16.pth")
    refiner, start = model.refiner.input.weight.clone(), model.transformer.start_position.clone()
    transfer = transfer_weights(model, tmp_path / "var_d16.pth")
    assert torch.equal(model.transformer.head.weight, bare["head.weight"])
    assert torch.equal(model.refiner.input.weight, refiner) and "refiner.input.weight" in transfer.fresh
    rows = bare["class_emb.weight"]
    assert torch.equal(model.transformer.class_embedding.weight[-1], rows[-1])
    torch.testing.assert_close(model.transformer.class_embedding.weight[0], rows[:1000].mean(0))
    assert torch.equal(model.transformer.start_position[:, -1], bare["pos_start"][:, 0])
    assert torch.equal(model.transformer.start_position[:, :-1], start[:, :-1])
    assert set(transfer.resized) == {CLASSES, START} and "pos_1LC" in transfer.unused
    assert {*transfer.loaded, *transfer.resized, *transfer.fresh} == set(model.state_dict())


def test_a_class_model_with_other_scales_starts_super_resolution(tmp_path: Path) -> None:
    source = small_class_model()
    with torch.no_grad():
        source.transformer.level_embedding.weight.normal_()
    save_pretrained(source, tmp_path)
    target = VARSR(with_scales(PRESETS["varsr-debug"], 1, 3, 5, 8))  # the source has 1, 2, 4
    transfer = transfer_weights(target, tmp_path)
    levels = source.transformer.level_embedding.weight
    assert torch.equal(target.transformer.level_embedding.weight, levels[[0, 1, 2, 2]])
    assert "1_2_4" in transfer.resized[LEVELS]
    assert torch.equal(target.transformer.blocks[1].modulation.weight, source.transformer.blocks[1].modulation.weight)
    assert any(name.startswith("transformer.prefix_encoder.") for name in transfer.fresh)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    torch.save({"encoder.conv_in.weight": torch.zeros(7, 3, 3, 3)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no tensor of a transformer that fits"):
        transfer_weights(small_model(), tmp_path / "x.pth")
    config = PRESETS["varsr-debug"]
    wide = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, width=64))
    save_pretrained(small_model(), tmp_path / "small")
    with pytest.raises(CheckpointError, match="fits"):
        transfer_weights(VARSR(wide), tmp_path / "small")  # the tokenizer alone would


def test_sizes_of_the_published_family() -> None:
    assert published_size(24) == PRESETS["varsr-d24"]
    assert published_size(24, super_resolution=False) == PRESETS["varsr-d24-c2i"]
    small = published_size(16).transformer
    assert (small.width, small.num_heads, small.prefix.widths[-1]) == (1024, 16, 1024)
    assert small.drop_path == pytest.approx(0.1 * 16 / 24)
