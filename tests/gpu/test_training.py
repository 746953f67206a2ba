"""Training on a GPU: every stage learns in every precision and resumes bit for bit; train.py runs over NCCL."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import noise_picture, small_model
from stages import (
    Blobs,
    class_detail_stage,
    class_stage,
    decoder_stage,
    detail_stage,
    tokenizer_stage,
    transformer_stage,
)
from torch._decomp.decompositions import upsample_bicubic2d_vec
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.varsr import VARSR
from models.weights.tokenizer_file import write_tokenizer
from training.loop import Stage
from training.states import StateFolder, restore_rng_state, rng_state

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
STEPS, ENDS = 20, 4
SECONDS = 60  # that train.py may take
# A stage on a few pictures that come again and again, and the loss that must fall on them.
STAGES: dict[str, tuple[Callable[..., Stage], str]] = {
    "tokenizer": (lambda **settings: tokenizer_stage(source=Blobs(8), adversarial_start=0.25, **settings), "pixel"),
    "sr": (lambda **settings: transformer_stage(source=Blobs(8), **settings), "cross_entropy"),
    "sr by Muon": (lambda **settings: transformer_stage(source=Blobs(8), muon=True, **settings), "cross_entropy"),
    "decoder": (lambda **settings: decoder_stage(source=Blobs(2), **settings), "pixel"),
    "detail": (lambda **settings: detail_stage(source=Blobs(8), **settings), "pixel"),
    "c2i": (lambda **settings: class_stage(count=8, **settings), "cross_entropy"),
    "c2i_detail": (lambda **settings: class_detail_stage(count=2, max_iters=80, learning_rate=2e-2, **settings),
                   "pixel"),
}


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of a state."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_of(each)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", STAGES)
def test_it_learns(name: str, precision: str, device: torch.device, tmp_path: Path) -> None:
    """The loss is finite and falls, no step of the optimiser is left out, and validation and export work."""
    build, key = STAGES[name]
    stage = build(device=device, precision=precision)
    steps = [stage.train_step(i) for i in range(STEPS)]
    assert all(math.isfinite(step["loss"]) and math.isfinite(step["grad_norm"]) for step in steps)
    first, last = (sum(step[key] for step in part) / ENDS for part in (steps[:ENDS], steps[-ENDS:]))
    assert last < 0.9 * first
    adam = stage.optimizer if hasattr(stage, "optimizer") else stage.optimizers[0]
    taken = {int(moments["step"]) for moments in adam.state.values()}
    assert taken == {STEPS}
    assert (stage.scaler.get_scale() > 1) == (precision == "fp16")
    assert all(math.isfinite(value) for value in stage.report(tmp_path, STEPS).values())
    stage.export(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))


@pytest.fixture()
def deterministic(monkeypatch: pytest.MonkeyPatch, full_precision: None) -> Iterator[None]:
    """Sums in the same order every time. For the gradient of bicubic enlargement PyTorch has such sums only in its
    decomposition: without it two trainings of a tokenizer on a GPU differ in their last bits."""
    interpolate = F.interpolate

    def decomposed(x: torch.Tensor, size: Any = None, mode: str = "nearest", **options: Any) -> torch.Tensor:
        if mode == "bicubic" and x.requires_grad:
            return upsample_bicubic2d_vec(x, list(size), False, None)
        return interpolate(x, size=size, mode=mode, **options)
    monkeypatch.setattr(F, "interpolate", decomposed)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", STAGES)
def test_it_resumes_bit_for_bit(name: str, device: torch.device, tmp_path: Path, deterministic: None) -> None:
    """Ten steps, a state written and read by a new stage, and ten more are twenty steps."""
    build, _ = STAGES[name]
    whole, half = (build(device=device, precision="bf16") for _ in range(2))
    torch.manual_seed(5)
    expected = [whole.train_step(i)["loss"] for i in range(STEPS)]
    torch.manual_seed(5)
    found = [half.train_step(i)["loss"] for i in range(STEPS // 2)]
    states = StateFolder(tmp_path)
    states.save(STEPS // 2, {**half.state_dict(), "rng": rng_state()})
    again = build(device=device, precision="bf16")
    torch.manual_seed(6)
    state = states.load_newest()
    again.load_state_dict(state)
    restore_rng_state(state["rng"])
    assert found + [again.train_step(i)["loss"] for i in range(STEPS // 2, STEPS)] == expected
    ends = [list(tensors_of(stage.state_dict())) for stage in (whole, again)]
    assert len(ends[0]) == len(ends[1]) > 10
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(*ends, strict=True))


def test_train_over_nccl(device: torch.device, tmp_path: Path) -> None:
    """torchrun starts train.py on one GPU, plain and with --fsdp, which opens a process group (NCCL's, in the dry run
    gloo's): both end well, with the same losses and a model that loads. The two run beside each other."""
    (tmp_path / "pictures").mkdir()
    for seed in range(2):
        noise_picture(80, 96, seed).save(tmp_path / "pictures" / f"{seed}.png")
    write_tokenizer(small_model().vqvae, tmp_path / "vqvae.safetensors")
    flags = ["--preset", "varsr-debug", "--vqvae", tmp_path / "vqvae.safetensors", "--data", tmp_path / "pictures",
             "--max_iters", 3, "--batch_size", 2, "--fp16", 0, "--log_every", 1, "--device", device]
    if device.type == "cuda":
        flags += ["--tf32", False]
    runs = {"plain": [], "shards": ["--fsdp"]}
    started = [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", ROOT / "train.py",
         *map(str, flags), "--output", tmp_path / name, *more], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for name, more in runs.items()]
    losses = {}
    try:
        for name, process in zip(runs, started, strict=True):
            _, said = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said[-3000:]
            lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
            losses[name] = [line["loss"] for line in lines if line["event"] == "train"]
            assert VARSR.from_pretrained(tmp_path / name, device=device).config.name == "varsr-debug"
    finally:
        for process in started:
            process.kill()
    assert len(losses["plain"]) == 3 and losses["shards"] == pytest.approx(losses["plain"], rel=1e-3)
