"""The table of published names against the complete tensor lists of the published files."""
from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from recipe import CASES, REFERENCE, SMALL, case_weights, config_weights, manifest_shapes
from torch import Tensor

from models.config import PRESETS, GenerationConfig
from models.varsr import VARSR
from models.weights.published import (
    from_published,
    infer_config,
    infer_scales,
    infer_vqvae_config,
    our_name,
    published_name,
    split_published,
    to_published,
)
from models.weights.save import export_published
from models.weights.unpickle import CheckpointError

TRANSFORMER_LIST = REFERENCE / "varsr_d24.transformer.json"
VQVAE_LIST = REFERENCE / "vqvae_ch160.json"


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def preset_state(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return VARSR(PRESETS[name]).state_dict()


def test_full_size_lists_give_the_preset():
    transformer, vqvae = on_meta(manifest_shapes(TRANSFORMER_LIST)), on_meta(manifest_shapes(VQVAE_LIST))
    assert infer_config(transformer, vqvae) == PRESETS["varsr-d24"]


def test_full_size_lists_import():
    transformer, vqvae = on_meta(manifest_shapes(TRANSFORMER_LIST)), on_meta(manifest_shapes(VQVAE_LIST))
    ours = from_published(PRESETS["varsr-d24"], transformer, vqvae)
    assert shapes_of(ours) == shapes_of(preset_state("varsr-d24"))


def test_full_size_lists_export():
    published = to_published(PRESETS["varsr-d24"], preset_state("varsr-d24"))
    assert shapes_of(published.transformer) == manifest_shapes(TRANSFORMER_LIST)
    assert shapes_of(published.vqvae) == manifest_shapes(VQVAE_LIST)


def test_class_to_image_goes_both_ways_with_the_tokenizer_of_ten_scales():
    config = PRESETS["varsr-d24-c2i"]
    published = to_published(config, preset_state("varsr-d24-c2i"))
    vqvae = on_meta(manifest_shapes(VQVAE_LIST))  # its usage statistics have 10 rows, the model 12 scales
    assert infer_config(published.transformer, vqvae) == config
    assert from_published(config, published.transformer, vqvae)["vqvae.quantizer.code_usage"].shape == (12, 4096)


def test_every_name_maps_back_to_itself():
    for name in [*manifest_shapes(TRANSFORMER_LIST), *manifest_shapes(VQVAE_LIST)]:
        ours = our_name(name)
        if ours is not None:
            assert published_name(ours) == name
    assert our_name("blocks.0.attn.something") is None
    assert published_name("vqvae.fidelity.conv_in.weight") is None
    assert published_name("vqvae.detail.conv_in.weight") is None


@pytest.mark.parametrize(("case", "kind"), [("sr", True), ("c2i", False)])
def test_case_weights_give_scales_and_kind(case: str, kind: bool):
    transformer, vqvae = case_weights(CASES, case, 0)
    config = infer_config(transformer, vqvae)
    assert config.vqvae.scales == (1, 2, 3, 4, 6, 8)
    assert (config.transformer.depth, config.transformer.width, config.transformer.num_heads) == (3, 192, 3)
    assert config.is_super_resolution == kind
    assert config.transformer.class_rows == (2 if kind else 13)


def test_round_trip_is_bit_equal():
    transformer, vqvae = config_weights(SMALL)
    assert infer_config(transformer, vqvae) == SMALL
    again = to_published(SMALL, from_published(SMALL, transformer, vqvae))
    for before, after in ((transformer, again.transformer), (vqvae, again.vqvae)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_recipe_and_the_exporter_agree_on_the_buffers():
    transformer, vqvae = case_weights(CASES, "sr", 0)
    config = infer_config(transformer, vqvae)
    exported = to_published(config, from_published(config, transformer, vqvae)).transformer
    for buffer in ("lvl_1L", "attn_bias_for_masking", "blocks.0.attn.zero_k_bias"):
        assert torch.equal(exported[buffer], transformer[buffer])


def test_key_bias_must_be_zero():
    transformer, vqvae = config_weights(SMALL)
    transformer["blocks.1.attn.zero_k_bias"][3] = 0.5
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.zero_k_bias"):
        from_published(SMALL, transformer, vqvae)


def test_parts_without_a_published_place_are_not_exported():
    config = dataclasses.replace(SMALL, transformer=dataclasses.replace(SMALL.transformer, shared_modulation=True))
    with torch.device("meta"):
        state = VARSR(config).state_dict()
    with pytest.raises(CheckpointError, match="modulation_offset"):
        to_published(config, state)


@pytest.mark.parametrize(("part", "setting", "value"), [
    ("transformer", "prefix_injection", True), ("transformer", "rope_base", 100.0), ("transformer", "rope_extent", 8.0),
    ("refiner", "train_steps", 500), ("refiner", "residual_scale", 1.0), ("vqvae", "norm_groups", 8),
    ("vqvae", "scales", (2, 3, 4))])
def test_settings_that_published_files_cannot_say_are_not_exported(tmp_path: Path, part: str, setting: str,
                                                                   value: object):
    config = dataclasses.replace(SMALL, **{part: dataclasses.replace(getattr(SMALL, part), **{setting: value})})
    with pytest.raises(CheckpointError, match=rf"no place for {part}\.{setting} .*{re.escape(str(value))}"):
        export_published(VARSR(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_that_no_weights_depend_on_do_not_stop_an_export():
    config = dataclasses.replace(
        SMALL, name="mine", generation=GenerationConfig(cfg=1.0),
        vqvae=dataclasses.replace(SMALL.vqvae, detail_blocks=3, detail_lr=False),
        transformer=dataclasses.replace(SMALL.transformer, drop_path=0.3),
        refiner=dataclasses.replace(SMALL.refiner, repeats=2, sampling_steps=5))
    state = VARSR(config).state_dict()
    published = to_published(config, state)
    again = VARSR(infer_config(published.transformer, published.vqvae))
    again.load_state_dict(from_published(config, published.transformer, published.vqvae))
    model = VARSR(config)
    model.load_state_dict(state)
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = GenerationConfig(refiner_steps=3)
    assert torch.equal(*(each.eval().generate(lr, options=options) for each in (model, again)))


def test_scales_must_be_squares():
    transformer, _ = config_weights(SMALL)
    transformer["lvl_1L"] = transformer["lvl_1L"][:, :-1]
    with pytest.raises(CheckpointError, match="lvl_1L counts"):
        infer_scales(transformer)
    del transformer["lvl_1L"]
    assert infer_scales(transformer) == SMALL.vqvae.scales  # a known list of that length
    transformer["lvl_embed.weight"] = torch.zeros(4, 32)
    with pytest.raises(CheckpointError, match="lvl_1L is missing"):
        infer_scales(transformer)


def test_a_tokenizer_alone_knows_only_how_many_scales():
    vqvae = on_meta(manifest_shapes(VQVAE_LIST))
    assert infer_vqvae_config(vqvae) == PRESETS["varsr-d24"].vqvae
    _, small = config_weights(SMALL)
    assert infer_vqvae_config(small, SMALL.vqvae.scales) == SMALL.vqvae
    small["quantize.ema_vocab_hit_SV"] = torch.zeros(7, 16)
    small_known = [preset for preset in PRESETS.values() if len(preset.vqvae.scales) == 7]
    assert small_known and infer_vqvae_config(small).scales == small_known[0].vqvae.scales
    small["quantize.ema_vocab_hit_SV"] = torch.zeros(5, 16)
    with pytest.raises(CheckpointError, match="5 scales"):
        infer_vqvae_config(small)


def test_an_absurd_block_index_is_refused_at_once():
    transformer, vqvae = config_weights(SMALL)
    transformer["blocks.99999999.attn.q_bias"] = torch.zeros(32)
    with pytest.raises(CheckpointError, match="100000000"):
        infer_config(transformer, vqvae)


@pytest.mark.parametrize("content", [[], {}, {"a": 1}, {"trainer": {"x": 1}}, {"trainer": {"var_wo_ddp": 3}},
                                     {"trainer": {"vae_local": {"encoder.conv_in.weight": "text"}}}])
def test_foreign_content_is_refused(content: object):
    with pytest.raises(CheckpointError, match="file.pth"):
        split_published(content, "file.pth")
