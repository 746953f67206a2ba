"""Weight files and configurations that mean harm: nothing runs, nothing grows, each is refused in one line."""
from __future__ import annotations

import argparse
import dataclasses
import io
import json
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from gadgets import GADGETS, Call, archive, no_hang
from gadgets import Opcodes as Op
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe import SMALL, config_weights, write_published_checkpoint
from safetensors.torch import save_file

from models.config import PRESETS, ConfigError, GenerationConfig, VARSRConfig, published_size
from models.varsr import VARSR
from models.weights.load import load_pretrained, load_vqvae
from models.weights.published import infer_config
from models.weights.save import save_pretrained
from models.weights.tokenizer_file import CONFIG_KEY, load_tokenizer
from models.weights.transfer import transfer_weights
from models.weights.unpickle import CheckpointError, RefusedError, load_pickle
from tests.memory import peak, reset_peak

MEMORY = 300 * 2 ** 20  # bytes that refusing a small file may take


def refusal(path: Path) -> str:
    """The one line that a file is refused with, in little time and memory."""
    before = reset_peak()
    with no_hang(), pytest.raises(CheckpointError) as caught:
        load_pickle(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 1000
    assert peak() - before < MEMORY
    return message


# --- code that would run ---

@pytest.mark.parametrize("name", GADGETS)
def test_the_gadgets_are_real(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(GADGETS[name](mark)))
    assert mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", GADGETS)
def test_no_gadget_runs(tmp_path: Path, name: str, protocol: int, zipped: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "VARSR.pth"
    torch.save({"trainer": {"var_wo_ddp": {"a": torch.ones(2)}}, "args": GADGETS[name](mark)}, path,
               pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefusedError, match="nothing was run"):
        load_pickle(path)
    assert "nothing was run" in refusal(path) and not mark.exists()


def called(module: str, attribute: str, *arguments: bytes) -> bytes:
    return Op.name(module, attribute) + Op.MARK + b"".join(arguments) + Op.TUPLE + Op.REDUCE


NUMPY_TYPE = called("numpy", "dtype", Op.text("f8"), b"\x89", b"\x88") + Op.put(9)
REFUSED = {  # what PyTorch's own reader allows, or a list of names alone does not see
    "bytearray": (called("builtins", "bytearray", Op.number(10 ** 10)), "builtins.bytearray"),
    "old bytearray": (called("__builtin__", "bytearray", Op.number(10 ** 10)), "builtins.bytearray"),
    "numpy void": (called("numpy._core.multiarray", "scalar",
                          called("numpy", "dtype", Op.text("V100000000"), b"\x89", b"\x88"), called(
                              "_codecs", "encode", Op.text("x"), Op.text("latin1"))), "V100000000"),
    "numpy object": (called("numpy", "dtype", Op.text("O8"), b"\x89", b"\x88"), "O8"),
    "array": (called("numpy._core.multiarray", "_reconstruct", Op.NONE), "_reconstruct"),
    "sparse": (called("torch._utils", "_rebuild_sparse_tensor", Op.NONE), "_rebuild_sparse_tensor"),
    "quantised": (called("torch._utils", "_rebuild_qtensor", Op.NONE), "_rebuild_qtensor"),
    "nested": (called("torch._utils", "_rebuild_nested_tensor", Op.NONE), "_rebuild_nested_tensor"),
    "meta": (called("torch._utils", "_rebuild_meta_tensor_no_storage", Op.NONE), "_rebuild_meta_tensor_no_storage"),
    "subclass": (called("torch._tensor", "_rebuild_from_type_v2", Op.NONE), "_rebuild_from_type_v2"),
    "a function as a value": (Op.name("torch._utils", "_rebuild_tensor_v2"), "function"),
    "instance": (b"(X\x01\0\0\0xios\nsystem\n", "os.system"),
    "old instance": (Op.MARK + Op.name("os", "system") + Op.text("x") + b"o", "os.system"),
    "extension": (b"\x82\x01" + Op.EMPTY + Op.REDUCE, "EXT1"),
    "name from the stack": (Op.text("os") + Op.text("system") + b"\x93", "os.system"),
    "a name that steers": (Op.name("a\x1b[31m", "b"), "\\x1b"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_value_is_refused_by_name(tmp_path: Path, name: str) -> None:
    body, named = REFUSED[name]
    message = refusal(archive(tmp_path / "x.pth", body))
    assert "refused" in message and named in message


# --- bombs and forgeries ---

COPIED = 30_000
BOMBS = {
    "memo": Op.LIST + Op.put(2 ** 32 - 1) + b"j\xfe\xff\xff\xff",
    "bytes": b"\x8e" + (2 ** 62).to_bytes(8, "little"),
    "text": b"\x8d" + (2 ** 62).to_bytes(8, "little"),
    "integer": b"\x8b" + (10 ** 6).to_bytes(4, "little") + bytes(10 ** 6 - 1) + b"\x01",
    "sets": Op.name("builtins", "set") + Op.put(0) + Op.LIST + Op.MARK + b"".join(
        Op.number(i) for i in range(COPIED)) + Op.APPENDS + Op.ONE + Op.put(1) + Op.LIST
        + (Op.get(0) + Op.get(1) + Op.REDUCE + Op.APPEND) * COPIED,
    "empty sets": Op.MARK + Op.SET * 2 ** 22 + Op.TUPLE,
    "texts": Op.name("_codecs", "encode") + Op.put(0) + Op.text("x" * 10 ** 6) + Op.text("latin1") + Op.TWO + Op.put(1)
        + Op.LIST + (Op.get(0) + Op.get(1) + Op.REDUCE + Op.APPEND) * COPIED,
    "tuples as a key": Op.DICT + Op.EMPTY + Op.ONE * 200_000 + Op.NONE + Op.SETITEM,
    "deep lists": Op.LIST * 100_000 + Op.APPEND * 99_999,
    "many laughs": Op.LIST + b"".join(Op.put(i) + Op.LIST + Op.get(i) + Op.APPEND + Op.get(i) + Op.APPEND
                                      for i in range(60)),
    "itself": Op.LIST + Op.put(0) + Op.get(0) + Op.APPEND,
    "keys of one hash": Op.DICT + Op.MARK + b"".join(Op.number(i * sys.hash_info.modulus) + Op.NONE
                                                     for i in range(1, 50_000)) + b"u",
    "an empty stack": Op.APPEND,
    "a mark too few": Op.TUPLE,
    "half a pair": Op.DICT + Op.MARK + Op.NONE + b"u",
    "a call of a value": Op.text("x") + Op.EMPTY + Op.REDUCE,
    "no number": called("numpy._core.multiarray", "scalar", NUMPY_TYPE, called("_codecs", "encode", Op.text("x"),
                                                                              Op.text("latin1"))),
    "another encoding": called("_codecs", "encode", Op.text("x"), Op.text("zlib")),
    "a device": called("torch", "device", Op.text("nonsense\n")),
    "an endless shape": called("torch", "Size", Op.numbers(*range(100))),
    "surrogates": b"X\x03\0\0\0\xed\xa0\x80" + b"\x8c\x02\xff\xff",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(tmp_path: Path, name: str) -> None:
    refusal(archive(tmp_path / "x.pth", BOMBS[name]))


def test_classes_and_functions_of_the_process_stay_as_they_are(tmp_path: Path) -> None:
    """BUILD on what a name stands for, instead of on what a call of it gives."""
    float64 = np.dtype("f8")
    state = Op.MARK + Op.number(3) + Op.text(">") + Op.NONE * 3 + Op.number(-1) * 2 + Op.number(0) + Op.TUPLE
    for body in (Op.name("argparse", "Namespace") + Op.NONE + Op.DICT + Op.text("x") + Op.NONE + Op.SETITEM + Op.TWO
                 + Op.BUILD, NUMPY_TYPE + state + Op.BUILD):
        path = archive(tmp_path / "x.pth", Op.LIST + body + Op.APPEND)
        with no_hang():
            try:
                load_pickle(path)
            except CheckpointError:
                continue
    assert not hasattr(argparse.Namespace, "x") and np.dtype("f8") is float64 and float64.isnative


FLOATS = np.arange(6, dtype=np.float32).tobytes()
FORGED = {  # (elements of the storage, offset, shape, strides)
    "larger than the storage": (6, 0, (7,), (1,)), "behind it": (6, 6, (1,), (1,)), "before it": (6, -1, (1,), (1,)),
    "wide strides": (6, 0, (2,), (6,)), "negative strides": (6, 5, (2,), (-1,)), "no strides": (6, 0, (2,), ()),
    "one number as many": (6, 0, (10 ** 12,), (0,)), "twice as many": (6, 0, (2, 6), (0, 1)),
    "many from the end": (6, 5, (6,), (0,)), "negative sides": (6, 0, (-6,), (1,)), "many dimensions": (
        6, 0, (1,) * 100, (1,) * 100), "a storage larger than its entry": (10 ** 12, 0, (6,), (1,)),
    "a storage smaller than its entry": (5, 0, (5,), (1,)), "a negative storage": (-6, 0, (0,), (1,)),
    "sides beyond 64 bits": (6, 0, (0, 2 ** 70), (1, 1)), "an offset beyond 64 bits": (6, 2 ** 70, (1,), (1,)),
}


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("name", FORGED)
def test_tensors_lie_within_their_storages(tmp_path: Path, name: str, mapped: bool) -> None:
    path = archive(tmp_path / "x.pth", Op.tensor(*FORGED[name]), {"0": FLOATS})
    with no_hang(), pytest.raises(CheckpointError, match="damaged"):
        load_pickle(path, mapped)


@pytest.mark.parametrize("mapped", [True, False])
def test_hand_made_tensors_are_read(tmp_path: Path, mapped: bool) -> None:
    """What the forgeries are forged from."""
    tensor = load_pickle(archive(tmp_path / "x.pth", Op.tensor(6, 1, (2, 2), (1, 3)), {"0": FLOATS}), mapped)
    assert tensor.tolist() == [[1, 4], [2, 5]]


def test_tensors_are_no_more_than_the_file(tmp_path: Path) -> None:
    tensor = Op.tensor(2 ** 16, 0, (2 ** 16,), (1,))
    path = archive(tmp_path / "x.pth", Op.LIST + (tensor + Op.APPEND) * 100, {"0": bytes(2 ** 18)})
    assert "more bytes than the file" in refusal(path)


def test_forged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", Op.tensor(6, 0, (6,), (1,)), {"0": FLOATS})
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02")  # of the storage, in the directory
    assert "compressed" in refusal(archive(tmp_path / "b.pth", Op.NONE, {"0": bytes(10 ** 6)}, zipfile.ZIP_DEFLATED))
    for place, size in ((entry + 20, 8), (entry + 42, 4), (entry + 8, 1)):  # sizes, place, flags
        path.write_bytes(whole[:place] + b"\xf1" * size + whole[place + size:])
        refusal(path)
    with zipfile.ZipFile(path, "w") as written, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            written.writestr("x/data.pkl", Op.START + Op.NONE + Op.STOP)
    assert "one name" in refusal(path)
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("x/data.pkl", Op.START + Op.tensor(6, 0, (6,), (1,)) + Op.STOP)
        written.writestr("x/byteorder", "big")
        written.writestr("x/data/0", FLOATS)
    assert "byte order" in refusal(path)
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("x/nothing", b"")
    refusal(path)


def test_archives_of_millions_of_files(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pth", Op.NONE)
    whole = path.read_bytes()
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    files = whole[start:end] * 200_000
    record = bytearray(whole[end:])
    record[12:20] = struct.pack("<II", len(files), start)
    path.write_bytes(whole[:start] + files + record)
    assert "at once" in refusal(path)


OLD = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]


@pytest.mark.parametrize("count, keys, data", [
    (10 ** 12, ["0"], struct.pack("<q", 10 ** 12)), (6, [], b""), (6, ["0"], struct.pack("<q", 5) + FLOATS),
    (6, ["0"], struct.pack("<q", 6) + FLOATS[:-1]), (6, ["0", "1"], struct.pack("<q", 6) + FLOATS), (6, None, FLOATS)])
def test_forged_files_of_the_old_format(tmp_path: Path, count: int, keys: object, data: bytes) -> None:
    storage = Op.storage("0", count).replace(Op.TUPLE + Op.STORAGE, Op.NONE + Op.TUPLE + Op.STORAGE)
    tensor = Op.tensor(count, 0, (6,), (1,)).replace(Op.storage("0", count), storage)
    (tmp_path / "x.pth").write_bytes(b"".join((*OLD, Op.START, tensor, Op.STOP, pickle.dumps(keys, 2), data)))
    refusal(tmp_path / "x.pth")


def test_flipped_bytes_end_in_one_line(tmp_path: Path) -> None:
    """Of both formats, with values of every kind: loaded, or refused."""
    state = {"a": torch.arange(6.0), "args": argparse.Namespace(lr=np.float64(0.5), path=Path("a")), "set": {1, 2},
             "ordered": OrderedDict(b=torch.ones(2, 3, dtype=torch.bfloat16)), "type": torch.float16}
    draw = random.Random(0)
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        whole = buffer.getvalue()
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            (tmp_path / "x.pth").write_bytes(damaged)
            for mapped in (True, False):
                with no_hang():
                    try:
                        load_pickle(tmp_path / "x.pth", mapped)
                    except CheckpointError as error:
                        assert "\n" not in str(error)


# --- what is read all the same ---

@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("mapped", [True, False])
def test_plain_values_are_read_as_they_were(tmp_path: Path, zipped: bool, protocol: int, mapped: bool) -> None:
    linear = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {dtype: torch.arange(-2, 5).to(dtype) for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
        torch.int64, torch.bool)}
    state = {"model": linear.state_dict(), "parameter": linear.weight, "optimizer": optimizer.state_dict(),
             "tensors": list(tensors.values()), "types": list(tensors), "views": [base, base[:, 1], base.mT],
             "empty": [torch.empty(0), torch.empty(2, 0)], "scalar": torch.tensor(3.0),
             "learned": torch.nn.Parameter(torch.tensor(2.0)),
             "plain": [None, True, False, 0, -1, 2 ** 80, 0.5, float("inf"), "é\n", b"\0\xff", (), (1,), {1: {2: 3}}],
             "numbers": [np.float64(0.5), np.float32(0.25), np.int64(-3), np.uint8(200), np.bool_(True)],
             "device": torch.device("cuda", 1), "shape": torch.Size([1, 2]), "set": {1, "a", 0.5}}
    path = tmp_path / "x.pth"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    loaded = load_pickle(path, mapped)
    for name in ("plain", "device", "shape", "set", "types", "numbers"):
        assert loaded[name] == state[name], name
    assert all(type(number) in (float, int, bool) for number in loaded["numbers"])
    pairs = [*zip(loaded["tensors"], state["tensors"]), *zip(loaded["views"], state["views"]),
             *zip(loaded["empty"], state["empty"]), (loaded["scalar"], state["scalar"]),
             (loaded["learned"], state["learned"]), (loaded["parameter"], linear.weight),
             (loaded["model"]["bias"], linear.bias),
             (loaded["optimizer"]["state"][0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])]
    assert all(ours.dtype == theirs.dtype and torch.equal(ours, theirs) for ours, theirs in pairs)
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert loaded["views"][1].untyped_storage().data_ptr() == loaded["views"][0].untyped_storage().data_ptr()
    assert loaded["views"][2].stride() == base.mT.stride()


# --- models ---

ONE = torch.ones(1)


def refused(source: Path, load=load_pretrained) -> str:
    with no_hang(), pytest.raises(CheckpointError) as caught:
        load(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.mark.parametrize("name, shape", [
    ("word_embed.weight", (0, 4)), ("word_embed.weight", ()), ("class_emb.weight", (10 ** 6, 0)),
    ("blocks.0.attn.scale_mul_1H11", (1, 0, 1, 1)), ("blocks.0.ffn.fc1.weight", (0, 32)),
    ("diffloss.net.input_proj.weight", (10 ** 9, 0)), ("lvl_embed.weight", (10 ** 9, 0)), ("pos_start", (1, 0, 32)),
    ("con_embedding.conv_in.weight", (0, 3, 3, 3)), ("con_embedding.conv_in.weight", (8, 10 ** 9, 0, 3)),
    ("lvl_1L", (0,)), ("head.weight", (16, 32, 1))])
def test_configurations_of_hostile_shapes(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    transformer, vqvae = config_weights(SMALL)
    transformer[name] = torch.zeros(shape, dtype=transformer[name].dtype)
    refused(write_published_checkpoint(tmp_path, transformer, vqvae))


@pytest.mark.parametrize("name, shape", [
    ("quantize.embedding.weight", (0, 4)), ("quantize.embedding.weight", (10 ** 9, 0)),
    ("encoder.conv_in.weight", (0, 3, 3, 3)), ("encoder.conv_in.weight", (32, 10 ** 6, 0, 3)),
    ("encoder.down.0.block.0.conv1.weight", (10 ** 6 * 32, 0)), ("encoder.down.1.block.0.conv1.weight", (0, 1)),
    ("quantize.ema_vocab_hit_SV", (0, 16))])
def test_tokenizers_of_hostile_shapes(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    _, vqvae = config_weights(SMALL)
    vqvae[name] = torch.zeros(shape)
    refused(write_published_checkpoint(tmp_path, None, vqvae), load_vqvae)


@pytest.mark.parametrize("change", [
    {1: torch.ones(1)}, {"x" * 300: torch.ones(1)}, {"a\nb": torch.ones(1)}, {"\x1b[2J": torch.ones(1)},
    {f"blocks.{'9' * 200}.x": torch.ones(1)}, {f"blocks.0.{i}": ONE for i in range(20_000)},
    {"lvl_1L": torch.zeros(1, 10 ** 6, dtype=torch.int64)}, {"lvl_1L": torch.full((1, 5), 2 ** 62)},
    {"word_embed.weight": torch.ones((1,) * 15)}, {"word_embed.weight": [1.0]}], ids=lambda change: str(change)[:20])
def test_state_dicts_that_no_model_has(change: dict, tmp_path: Path) -> None:
    transformer, vqvae = config_weights(SMALL)
    refused(write_published_checkpoint(tmp_path, {**transformer, **change}, vqvae))


def test_starting_from_tensors_of_other_kinds(tmp_path: Path) -> None:
    """What cannot be taken over is left, not stumbled over."""
    transformer, _ = config_weights(SMALL)
    transformer |= {"class_emb.weight": torch.ones(1, 32), "pos_start": torch.ones(5, 2, 32),
                    "lvl_embed.weight": torch.ones(3, 32, dtype=torch.int64), "head.bias": torch.ones(16).bool()}
    model = VARSR(SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = transfer_weights(model, write_published_checkpoint(tmp_path, transformer, None))
    left = {"transformer.class_embedding.weight", "transformer.start_position", "transformer.level_embedding.weight",
            "transformer.head.bias"}
    assert left <= set(result.fresh)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in left)


# --- safetensors ---

def safetensors(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("header, data, length", [
    ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 4, None), ({"a": entry([2 ** 62, 4], 0, 4)}, 4, None),
    ({"a": entry([1] * 1000, 0, 4)}, 4, None), ({"a\x1b[2J": entry([1], 0, 4)}, 4, None), ({}, 0, 2 ** 63),
    ({str(i): entry([0], 0, 0) for i in range(30_000)}, 0, None), ({"a": entry([4], 0, 4, "F8_E4M3")}, 4, None),
    ({"a": entry([1], 0, 8, "C64")}, 8, None), ({"a": entry([0, 10 ** 18], 0, 0)}, 0, None),
    ({"__metadata__": {"x": 1}}, 0, None), ([[]] * 1000, 0, None)], ids=lambda value: str(value)[:20])
def test_hostile_headers(tmp_path: Path, header: object, data: int, length: int | None) -> None:
    save_pretrained(VARSR(SMALL), tmp_path)
    before = reset_peak()
    safetensors(tmp_path / "model.safetensors", json.dumps(header).encode(), bytes(data), length)
    assert "\x1b" not in refused(tmp_path) and "model.safetensors" in refused(tmp_path)
    assert peak() - before < MEMORY


TOKENIZER = dataclasses.asdict(SMALL.vqvae)


@pytest.mark.parametrize("config", [
    "[]", "[" * 100_000, "{", json.dumps({**TOKENIZER, "base_width": "x"}),
    json.dumps({**TOKENIZER, "res_blocks": 1e9}), json.dumps({**TOKENIZER, "more": 1}),
    json.dumps({**TOKENIZER, "base_width": 16384, "vocab_size": 262144}),
    json.dumps({**TOKENIZER, "scales": [1, 2, None]}), json.dumps({**TOKENIZER, "norm_groups": 0})],
    ids=lambda text: text[-20:])
def test_hostile_tokenizer_files(tmp_path: Path, config: str) -> None:
    before = reset_peak()
    save_file({"a": torch.ones(1)}, tmp_path / "vqvae.safetensors", {CONFIG_KEY: config})
    assert "vqvae.safetensors" in refused(tmp_path / "vqvae.safetensors", load_tokenizer)
    assert peak() - before < MEMORY


def test_a_tokenizer_of_no_numbers(tmp_path: Path) -> None:
    tensors = {name: torch.full_like(value, torch.nan) for name, value in VARSR(SMALL).vqvae.state_dict().items()}
    save_file(tensors, tmp_path / "vqvae.safetensors", {CONFIG_KEY: json.dumps(TOKENIZER)})
    assert "not finite" in refused(tmp_path / "vqvae.safetensors", load_tokenizer)


# --- configurations ---

FIELDS = [("", field.name) for field in dataclasses.fields(VARSRConfig)] + [
    (part, field.name) for part in ("vqvae", "transformer", "refiner", "generation")
    for field in dataclasses.fields(getattr(SMALL, part))] + [("transformer.prefix", "widths"),
                                                              ("transformer.prefix", "stem")]


def changed(part: str, field: str, value: object) -> str:
    """The JSON of a configuration with one field of another value."""
    values = json.loads(SMALL.to_json())
    target = values
    for name in filter(None, part.split(".")):
        target = target[name]
    target[field] = value
    return json.dumps(values)


WRONG = ["x", -1, 10 ** 30, float("nan"), float("inf"), 1e300, [[]], [None], {}, {"a": {"b": []}}, "x" * 10 ** 6,
         [10 ** 9] * 1000, True]
RIGHT = {("", "name"): ("x",), ("", "class_names"): (), ("", "inference"): (True,), ("vqvae", "linear_path"): (True,),
         ("vqvae", "detail_lr"): (True,), ("transformer", "shared_modulation"): (True,),
         ("transformer", "prefix_injection"): (True,),
         ("generation", "more_smooth"): (True,),
         **{("", part): ({},) for part in ("vqvae", "transformer", "refiner", "generation")}}


@pytest.mark.parametrize("part, field", FIELDS, ids=lambda name: name or "model")
def test_every_field_has_a_type_and_bounds(part: str, field: str) -> None:
    for value in WRONG:
        if any(value is right or value == right for right in RIGHT.get((part, field), ())):
            continue
        with no_hang(), pytest.raises(ConfigError) as caught:
            VARSRConfig.from_json(changed(part, field, value))
        message = str(caught.value)
        assert field in message and "\n" not in message and len(message) < 500, value


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '"x"', "{", "[" * 10 ** 6, '{"format":' * 10 ** 5, "NaN",
                                  "9" * 10_000, '{"format": 1, "vqvae": {"vqvae": {}}}', '{"format": [1]}'],
                         ids=lambda text: text[:12])
def test_what_is_no_configuration(text: str, tmp_path: Path) -> None:
    with no_hang(), pytest.raises(ConfigError) as caught:
        VARSRConfig.from_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    save_pretrained(VARSR(SMALL), tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b" " * 10 ** 7])
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError):
        VARSRConfig.load(tmp_path / "config.json")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    st.sampled_from(sorted({name for _, name in FIELDS})), inner, max_size=3), max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=3))
def test_whatever_stands_in_a_configuration(changes: list) -> None:
    values = json.loads(SMALL.to_json())
    for (part, field), value in changes:
        target = values
        for name in filter(None, part.split(".")):
            target = target[name] if isinstance(target, dict) and isinstance(target.get(name), dict) else {}
        target[field] = value
    try:
        config = VARSRConfig.from_json(json.dumps(values))
    except ConfigError:
        return
    with torch.device("meta"):
        VARSR(config)


def largest() -> VARSRConfig:
    """As many modules as a configuration may ask for."""
    config = PRESETS["varsr-d24"]
    vqvae = dataclasses.replace(config.vqvae, base_width=64, multipliers=(1,) * 9, res_blocks=16, phi_count=64,
                                scales=(1, 2, 3, 4, 8), fidelity_width=64, fidelity_blocks=16, fidelity_pixels=64,
                                detail_width=64, detail_blocks=64)
    prefix = dataclasses.replace(config.transformer.prefix, widths=(64,) * 9)
    return dataclasses.replace(
        config, vqvae=vqvae, refiner=dataclasses.replace(config.refiner, depth=64, train_steps=10_000),
        transformer=dataclasses.replace(config.transformer, depth=128, width=16384, num_heads=32, prefix=prefix))


def test_the_largest_configuration_is_built_at_once() -> None:
    config, before = largest(), reset_peak()
    with no_hang(), torch.device("meta"):
        VARSR(config)
    assert peak() - before < MEMORY
    with pytest.raises(ConfigError, match="window of 1[68]"):
        dataclasses.replace(config.vqvae, scales=(1, 2, 64))
    with pytest.raises(ConfigError, match="tokens"):
        dataclasses.replace(config.vqvae, scales=tuple(range(1, 65)))


@pytest.mark.parametrize("config", [*PRESETS.values(), SMALL, published_size(1), published_size(36, False)],
                         ids=lambda config: config.name)
def test_models_that_exist_are_within_the_bounds(config: VARSRConfig) -> None:
    assert VARSRConfig.from_json(config.to_json()) == config
    if config.is_super_resolution and not config.transformer.shared_modulation and config.vqvae.stem == 1:
        from models.weights.published import to_published
        with torch.device("meta"):
            parts = to_published(config, VARSR(config).state_dict())
        assert infer_config(parts.transformer, parts.vqvae).transformer.depth == config.transformer.depth


def test_a_call_is_no_value() -> None:
    """Nor are settings that a caller makes of other types: the checks are those of the configuration itself."""
    with pytest.raises(ConfigError, match="cfg"):
        GenerationConfig(cfg=True)
    with pytest.raises(ConfigError, match="top_k"):
        GenerationConfig(top_k=2.5)
    assert isinstance(Call(print).__reduce__(), tuple)
