"""Tokenizer files: they say how they are built, load unchanged, and tell what is wrong with them."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import small_model
from recipe import SMALL, config_weights
from safetensors.torch import save_file

from models.config import PRESETS
from models.vqvae import VQVAE
from models.weights.save import save_pretrained
from models.weights.tokenizer_file import load_tokenizer, tokenizer_config, write_tokenizer
from models.weights.unpickle import CheckpointError

DEBUG = PRESETS["varsr-debug"].vqvae


@pytest.fixture()
def odd() -> VQVAE:
    """Factor 6, five scales: no preset."""
    torch.manual_seed(0)
    return VQVAE(dataclasses.replace(DEBUG, scales=(1, 2, 3, 4, 5), stem=3, vocab_size=20))


def same(a: VQVAE, b: VQVAE) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_file_says_how_it_is_built(odd: VQVAE, tmp_path: Path) -> None:
    write_tokenizer(odd, tmp_path / "vqvae.safetensors")
    loaded = load_tokenizer(tmp_path / "vqvae.safetensors")
    assert loaded.config == odd.config and same(loaded, odd)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["vqvae.safetensors"]


def test_other_scales_for_the_same_weights(odd: VQVAE, tmp_path: Path) -> None:
    write_tokenizer(odd, tmp_path / "vqvae.safetensors")
    loaded = load_tokenizer(tmp_path / "vqvae.safetensors", scales=(1, 3, 8))
    assert loaded.config.scales == (1, 3, 8) and loaded.config.image_size == 48
    assert torch.equal(loaded.quantizer.codebook.weight, odd.quantizer.codebook.weight)
    assert [codes.shape[1] for codes in loaded.tokenize(torch.zeros(1, 3, 48, 48))] == [1, 9, 64]


def test_a_published_file_and_a_model_folder(tmp_path: Path) -> None:
    _, published = config_weights(SMALL)
    torch.save({"trainer": {"vae_local": published}}, tmp_path / "VQVAE.pth")
    loaded = load_tokenizer(tmp_path / "VQVAE.pth", scales=SMALL.vqvae.scales)
    assert loaded.config == SMALL.vqvae
    assert torch.equal(loaded.quantizer.codebook.weight, published["quantize.embedding.weight"])
    model = small_model()
    save_pretrained(model, tmp_path / "model")
    assert same(load_tokenizer(tmp_path / "model"), model.vqvae)


def test_what_looks_at_the_lr_picture_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    looking = VQVAE(dataclasses.replace(DEBUG, fidelity_width=8, detail_width=8))
    write_tokenizer(looking, tmp_path / "vqvae.safetensors")
    loaded = load_tokenizer(tmp_path / "vqvae.safetensors")
    assert loaded.config == DEBUG and loaded.fidelity is None and loaded.detail is None


def test_files_without_a_configuration(tmp_path: Path, odd: VQVAE) -> None:
    path = tmp_path / "old.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in odd.state_dict().items()}, path)
    assert tokenizer_config(path) is None
    assert same(load_tokenizer(path, odd.config), odd)
    with pytest.raises(CheckpointError, match="does not say how it is built"):
        load_tokenizer(path)
    with pytest.raises(CheckpointError, match="another shape"):
        load_tokenizer(path, DEBUG)


def test_damage_is_told_in_one_line(tmp_path: Path, odd: VQVAE) -> None:
    path = tmp_path / "vqvae.safetensors"
    with pytest.raises(FileNotFoundError, match="train_vqvae.py writes"):
        tokenizer_config(path)
    write_tokenizer(odd, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="truncated"):
        tokenizer_config(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"vqvae_config": '{"depth": 3}'})
    with pytest.raises(CheckpointError, match="no tokenizer file"):
        tokenizer_config(path)
