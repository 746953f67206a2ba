"""Loading and saving: what loads, what is refused with which words, and what a refused file can not do."""
from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from recipe import SMALL, config_weights, write_published_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.config import FULL_PRECISION, PRESETS
from models.varsr import VARSR
from models.weights.load import (
    identity,
    load_loose,
    load_pretrained,
    load_vqvae,
    located,
    parse_hub_id,
    require_kind,
)
from models.weights.save import export_published, save_pretrained
from models.weights.unpickle import CheckpointError, load_pickle
from models.weights.weight_file import MappedFile


@pytest.fixture
def parts() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return config_weights(SMALL)


@pytest.fixture
def small() -> VARSR:
    torch.manual_seed(0)
    return VARSR(SMALL)


def without(tensors: dict[str, Tensor], *starts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}


def error_of(source: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- published files ---

def test_published_pair_loads_from_file_and_folder(tmp_path: Path, parts):
    path = write_published_checkpoint(tmp_path, *parts)
    for source in (path, str(path), tmp_path):
        model = VARSR.from_pretrained(source)
        assert model.config == SMALL
        assert torch.equal(model.transformer.blocks[1].attention.qkv.weight, parts[0]["blocks.1.attn.mat_qkv.weight"])
        assert torch.equal(model.vqvae.decoder.conv_in.bias, parts[1]["decoder.conv_in.bias"])


def test_dtype_is_applied_and_rope_computed(tmp_path: Path, parts):
    model = VARSR.from_pretrained(write_published_checkpoint(tmp_path, *parts), dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype is (torch.float32 if name.startswith(FULL_PRECISION) else torch.bfloat16)
    assert torch.equal(model.transformer.rotations, VARSR(SMALL).transformer.rotations)


def test_tokenizer_inside_the_pickle_is_the_second_choice(tmp_path: Path, parts):
    path = tmp_path / "VARSR.pth"
    torch.save({"trainer": {"var_wo_ddp": parts[0], "vae_local": parts[1]}}, path)
    _, inside = load_pretrained(path)
    beside = {name: tensor + 1 for name, tensor in parts[1].items()}
    torch.save(beside, tmp_path / "VQVAE.pth")  # a bare state dict, as the original VAR publishes its tokenizer
    _, replaced = load_pretrained(path)
    name = "vqvae.quantizer.codebook.weight"
    assert torch.equal(replaced[name], inside[name] + 1)


def test_bare_state_dict_and_old_torch_format_load(tmp_path: Path, parts):
    write_published_checkpoint(tmp_path, None, parts[1])
    torch.save(OrderedDict(parts[0]), tmp_path / "any_name.pth", _use_new_zipfile_serialization=False)
    config, _ = load_pretrained(tmp_path / "any_name.pth")
    assert config == SMALL


def test_usage_statistics_of_other_scales_become_zeros(tmp_path: Path, parts):
    parts[1]["quantize.ema_vocab_hit_SV"] = torch.ones(10, 16)
    _, tensors = load_pretrained(write_published_checkpoint(tmp_path, *parts))
    assert tensors["vqvae.quantizer.code_usage"].shape == (3, 16)
    assert not tensors["vqvae.quantizer.code_usage"].any()


def test_tokenizer_alone(tmp_path: Path, parts, small: VARSR):
    path = write_published_checkpoint(tmp_path, None, parts[1])
    vqvae = load_vqvae(path, SMALL.vqvae.scales)
    assert vqvae.config == SMALL.vqvae
    assert torch.equal(vqvae.pre_quant.weight, parts[1]["quant_conv.weight"])
    save_pretrained(small, tmp_path / "ours")
    assert torch.equal(load_vqvae(tmp_path / "ours").pre_quant.weight, small.vqvae.pre_quant.weight)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_vqvae(tmp_path / "nowhere.pth")


def test_export_is_what_was_imported(tmp_path: Path, parts):
    path = write_published_checkpoint(tmp_path / "a", *parts)
    export_published(VARSR.from_pretrained(path), tmp_path / "b")
    for file, key, part in (("VARSR.pth", "var_wo_ddp", parts[0]), ("VQVAE.pth", "vae_local", parts[1])):
        written = load_pickle(tmp_path / "b" / file)["trainer"][key]
        assert written.keys() == part.keys()
        assert all(torch.equal(written[name], part[name]) for name in part)


# --- refused: tensors ---

def test_missing_tensors_are_listed(tmp_path: Path, parts):
    gone = ["blocks.0.ffn.fc2.bias", "diffloss.net.final_layer.linear.weight"]
    message = error_of(write_published_checkpoint(tmp_path, without(parts[0], *gone), parts[1]))
    assert all(name in message for name in gone) and "truncated or edited" in message and "VARSR.pth" in message


def test_a_missing_tensor_that_the_configuration_needs_is_named(tmp_path: Path, parts):
    message = error_of(write_published_checkpoint(tmp_path, without(parts[0], "class_emb."), parts[1]))
    assert "'class_emb.weight' is missing" in message


def test_extra_tensor_is_listed(tmp_path: Path, parts):
    parts[0]["blocks.0.attn.extra"] = torch.zeros(2)
    message = error_of(write_published_checkpoint(tmp_path, *parts))
    assert "not known to this model: blocks.0.attn.extra" in message


def test_misshapen_tensor_is_listed_with_both_shapes(tmp_path: Path, parts):
    parts[1]["decoder.conv_out.weight"] = torch.zeros(3, 32, 5, 5)
    message = error_of(write_published_checkpoint(tmp_path, *parts))
    assert "decoder.conv_out.weight (3, 32, 5, 5) instead of (3, 32, 3, 3)" in message and "VQVAE.pth" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, parts, value: float):
    parts[0]["blocks.1.attn.proj.weight"][3, 4] = value
    message = error_of(write_published_checkpoint(tmp_path, *parts))
    assert "NaN or infinite values: blocks.1.attn.proj.weight" in message


def test_integer_weights_are_refused(tmp_path: Path, parts):
    parts[0]["head.bias"] = parts[0]["head.bias"].long()
    assert "head.bias (torch.int64" in error_of(write_published_checkpoint(tmp_path, *parts))


def test_tokenizer_of_another_vocabulary(tmp_path: Path, parts):
    parts[1]["quantize.embedding.weight"] = torch.zeros(24, 4)
    message = error_of(write_published_checkpoint(tmp_path, *parts))
    assert "head.weight (16, 32) instead of (24, 32)" in message and "another model" in message


# --- refused: files of the wrong kind ---

def test_tokenizer_given_as_model(tmp_path: Path, parts):
    assert "is a tokenizer file" in error_of(write_published_checkpoint(tmp_path, None, parts[1]))


def test_transformer_given_as_tokenizer(tmp_path: Path, parts):
    path = write_published_checkpoint(tmp_path, *parts)
    (tmp_path / "VQVAE.pth").write_bytes(path.read_bytes())
    assert "is a transformer file" in error_of(path)


def test_bare_var_file_cannot_restore(tmp_path: Path, parts):
    bare = without(parts[0], "diffloss.", "decoder_norm.", "con_embedding.")
    bare["pos_1LC"] = torch.zeros(1, 21, 32)
    torch.save(bare, tmp_path / "var_d24.pth")
    assert "bare VAR file" in error_of(tmp_path / "var_d24.pth")


def test_missing_tokenizer_says_where_to_get_it(tmp_path: Path, parts):
    path = write_published_checkpoint(tmp_path, parts[0], None)
    with pytest.raises(FileNotFoundError, match="download VQVAE.pth from https://huggingface.co/qyp2000/VARSR"):
        load_pretrained(path)


def test_class_to_image_file_where_super_resolution_is_needed(tmp_path: Path, small: VARSR):
    with pytest.raises(CheckpointError, match="class-to-image model, but a super-resolution one is needed"):
        require_kind(PRESETS["varsr-d24-c2i"], True, "VARSR_C2I.pth")
    require_kind(SMALL, True, "x")
    save_pretrained(small, tmp_path)
    save_file(without(small.state_dict(), "transformer.prefix_encoder."), tmp_path / "model.safetensors")
    assert "class-to-image file where a super-resolution one is needed" in error_of(tmp_path)


# --- refused: files that are broken or dangerous ---

class Dangerous:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, parts, zipped: bool):
    ran, path = tmp_path / "ran", tmp_path / "VARSR.pth"
    torch.save({"trainer": {"var_wo_ddp": parts[0]}, "args": Dangerous(ran)}, path,
               _use_new_zipfile_serialization=zipped)
    message = error_of(path)
    assert "refused" in message and f"{os.mkdir.__module__}.mkdir" in message and "nothing was run" in message
    assert not ran.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_pickle_that_would_run_code(tmp_path: Path):
    ran, path = tmp_path / "ran", tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"args": Dangerous(ran)}))
    assert f"{os.mkdir.__module__}.mkdir" in error_of(path)
    assert not ran.exists()


def test_foreign_class_is_refused_by_name(tmp_path: Path):
    torch.save({"args": Dangerous.__class__, "x": torch.nn.Linear(1, 1)}, tmp_path / "x.pth")
    assert "refused" in error_of(tmp_path / "x.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "y.pth")
    assert "torch.nn.modules.linear.Linear" in error_of(tmp_path / "y.pth")


def test_plain_types_in_args_load(tmp_path: Path, parts):
    write_published_checkpoint(tmp_path, *parts)
    args = argparse.Namespace(path=Path("a/b"), lr=np.float64(0.5), steps=np.int64(3), dtype=torch.float16,
                              scales=(1, 2), seen={1, 2}, nested=OrderedDict(a=None))
    torch.save({"epoch": 3, "trainer": {"var_wo_ddp": parts[0]}, "args": args}, tmp_path / "VARSR.pth")
    assert load_pretrained(tmp_path)[0] == SMALL
    loaded = load_pickle(tmp_path / "VARSR.pth")["args"]
    assert str(loaded.path) == "a/b" and loaded.lr == 0.5 and loaded.steps == 3 and loaded.seen == {1, 2}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickle(tmp_path: Path, parts, share: float, zipped: bool):
    path = tmp_path / "VARSR.pth"
    torch.save({"trainer": {"var_wo_ddp": parts[0]}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    assert "download it again" in error_of(path)


def test_an_error_page_is_no_weight_file(tmp_path: Path):
    (tmp_path / "VARSR.pth").write_text("<html>404</html>")
    assert "no PyTorch file" in error_of(tmp_path / "VARSR.pth")


# --- our own format ---

@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_safetensors_round_trip(tmp_path: Path, small: VARSR, dtype: torch.dtype | None):
    save_pretrained(small, tmp_path / "model", dtype)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded = VARSR.from_pretrained(tmp_path / "model")
    assert loaded.config == SMALL
    for name, tensor in small.state_dict().items():
        expected = tensor if dtype is None or name.startswith(FULL_PRECISION) else tensor.to(dtype).float()
        assert torch.equal(loaded.state_dict()[name], expected), name


def test_our_writer_is_what_the_library_writes(tmp_path: Path, small: VARSR):
    state = {name: tensor.bfloat16() for name, tensor in small.transformer.state_dict().items()}
    save_pretrained(small, tmp_path, torch.bfloat16)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == small.state_dict().keys()
    assert all(torch.equal(read[f"transformer.{name}"], tensor) for name, tensor in state.items())


def test_channels_last_models_save_as_others(tmp_path: Path, small: VARSR):
    save_pretrained(small, tmp_path / "a")
    save_pretrained(small.channels_last(), tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_failed_write_leaves_the_old_model(tmp_path: Path, small: VARSR):
    save_pretrained(small, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        small.transformer.head.bias[0] = 1e6
    with pytest.raises(CheckpointError, match="'transformer.head.bias' is not finite as torch.float16: use bf16"):
        save_pretrained(small, tmp_path, torch.float16)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_broken_folders(tmp_path: Path, small: VARSR):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_pretrained(tmp_path)
    save_pretrained(small, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-100])
    assert "truncated" in error_of(tmp_path)
    weights.write_bytes(whole)
    for broken in (text[:20], "[]", json.dumps({**json.loads(text), "depht": 3}),
                   json.dumps({**json.loads(text), "transformer": {"width": "wide"}})):
        config.write_text(broken)
        assert "config.json" in error_of(tmp_path)
    config.write_text(text.replace('"depth": 2', '"depth": 3', 1))
    assert "transformer.blocks.2.attention.q_bias" in error_of(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors does not exist"):
        load_pretrained(tmp_path)


def test_a_folders_files_mean_the_folder_and_no_others(tmp_path: Path, small: VARSR):
    """A tokenizer, tokens or another model's weights beside a model must not pass for it."""
    save_pretrained(small, tmp_path)
    for name in ("config.json", "model.safetensors"):
        assert load_pretrained(tmp_path / name)[0] == SMALL and located(tmp_path / name) == tmp_path
    for name in ("vqvae.safetensors", "epoch_3.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
        for load in (load_pretrained, load_loose, identity):
            with pytest.raises(CheckpointError, match=f"{name} is no model by itself: give a folder"):
                load(tmp_path / name)


# --- the hub ---

@pytest.mark.parametrize(("source", "expected"), [
    ("qyp2000/VARSR", ("qyp2000/VARSR", None)),
    ("qyp2000/VARSR/VARSR_C2I.pth", ("qyp2000/VARSR", "VARSR_C2I.pth")),
    ("someone/a-model.v2", ("someone/a-model.v2", None)),
    ("checkpoints/VARSR.pth", None), ("checkpoints/varsr-tiny", None), ("./a/b", None), ("/a/b", None),
    ("VARSR.pth", None), ("../a", None), (Path("qyp2000/VARSR"), None),
])
def test_what_is_a_hub_id(source: object, expected: object):
    assert parse_hub_id(source) == expected


def test_hub_published_files(tmp_path: Path, parts, monkeypatch: pytest.MonkeyPatch):
    write_published_checkpoint(tmp_path, *parts)
    asked = []

    def download(repo: str, name: str, **options: object) -> str:
        asked.append((repo, name, options))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = VARSR.from_pretrained("qyp2000/VARSR", revision="abc", cache_dir="cache", local_files_only=True)
    assert model.config == SMALL
    options = {"revision": "abc", "cache_dir": "cache", "local_files_only": True}
    assert asked == [("qyp2000/VARSR", name, options) for name in ("VQVAE.pth", "VARSR.pth")]


def cached(cache: Path, repo: str, folder: Path) -> None:
    """Lay a folder's files out as the hub's cache does."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("1" * 40)
    (root / "snapshots").mkdir()
    folder.rename(root / "snapshots" / ("1" * 40))


def test_hub_model_from_a_real_cache_offline(tmp_path: Path, small: VARSR):
    save_pretrained(small, tmp_path / "model")
    cached(tmp_path / "cache", "someone/small", tmp_path / "model")
    loaded = VARSR.from_pretrained("someone/small", cache_dir=tmp_path / "cache", local_files_only=True)
    assert torch.equal(loaded.transformer.head.weight, small.transformer.head.weight)


def test_offline_without_the_file_names_file_repository_and_place(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        load_pretrained("qyp2000/VARSR", cache_dir=tmp_path, local_files_only=True)
    assert all(part in str(caught.value) for part in ("VQVAE.pth", "huggingface.co/qyp2000/VARSR", "checkpoints/"))


def test_offline_mode_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"someone/model .*config\.json|config\.json of someone/model"):
        load_pretrained("someone/model", cache_dir=tmp_path)


@pytest.mark.parametrize(("error", "words"), [
    (LocalEntryNotFoundError("no"), "out of reach"),
    (EntryNotFoundError("no"), "holds no config.json"),
    (ConnectionError("cable"), "cable"),
])
def test_hub_errors_have_a_remedy(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str):
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=words):
        load_pretrained("someone/model")


def test_a_missing_local_file_says_where_to_get_it():
    with pytest.raises(FileNotFoundError, match="download VARSR.pth from https://huggingface.co/qyp2000/VARSR"):
        load_pretrained("checkpoints/none/VARSR.pth")
    with pytest.raises(FileNotFoundError, match="check the path"):
        load_pretrained("/nowhere/at/all")


# --- memory ---

@pytest.mark.parametrize("mapped", [True, False])
def test_released_pages_read_the_same_again(tmp_path: Path, mapped: bool):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.arange(100_000.0), "b": torch.ones(3)}, path)
    tensors = load_pickle(path, mapped)
    file = MappedFile(path)
    assert bool(file.ranges) == (mapped and sys.platform == "linux")
    for tensor in tensors.values():
        file.release(tensor)
    assert torch.equal(tensors["a"], torch.arange(100_000.0)) and torch.equal(tensors["b"], torch.ones(3))
