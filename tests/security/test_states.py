"""Training states of somebody else's: what they hold is read, nothing in them runs, and none is passed over for it."""
from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gadgets import GADGETS, archive, no_hang
from gadgets import Opcodes as Op

from models.weights.unpickle import CheckpointError, RefusedError, TooLargeError
from training.loop import LoopConfig, TrainLoop
from training.optim import restore_optimizer
from training.run import run_stage
from training.states import StateFolder, restore_rng_state, rng_state, save_atomically
from utils.errors import UserError, guarded

LAST = "state-00000020.pt"


class Line:
    """A stage that fits a line."""

    best_metric = ("weight", 1.0)

    def __init__(self) -> None:
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.generator = torch.Generator().manual_seed(1)

    def train_step(self, iteration: int, place: float) -> dict[str, float]:
        x = torch.randn(8, 3, generator=self.generator)
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.item()}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])

    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        return {"weight": 0.0}

    def export(self, folder: Path) -> None:
        """Nothing to write."""


def loop(stage: Line, folder: Path, iters: int = 20) -> TrainLoop:
    return TrainLoop(stage, LoopConfig(folder, iters, save_every=5), {"batch_size": 8})


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The output folder of a short training."""
    loop(Line(), tmp_path / "run").run()
    return tmp_path / "run"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", GADGETS)
def test_no_gadget_runs_and_no_other_state_takes_its_place(finished: Path, tmp_path: Path, name: str,
                                                           zipped: bool) -> None:
    mark = tmp_path / "ran"
    state = torch.load(finished / "states" / LAST)
    torch.save({**state, "settings": GADGETS[name](mark)}, finished / "states" / LAST,
               _use_new_zipfile_serialization=zipped)
    files = {path: path.read_bytes() for path in (finished / "states").iterdir()}
    with no_hang(), pytest.raises(RefusedError) as caught:
        loop(Line(), finished, 30)
    message = str(caught.value)
    assert all(said in message for said in (LAST, "nothing was run", "--resume no")) and "\n" not in message
    assert not mark.exists() and {path: path.read_bytes() for path in (finished / "states").iterdir()} == files


def test_the_program_says_it_in_a_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"iteration": 25, "x": GADGETS["os.system"](tmp_path / "ran")}, finished / "states/state-00000025.pt")
    assert guarded("train", lambda: run_stage(Line(), LoopConfig(finished, 30), {})) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("train: ") and not (tmp_path / "ran").exists()


def test_states_of_earlier_versions_are_called_so(finished: Path) -> None:
    state = torch.load(finished / "states" / LAST)
    state["rng"][0]["numpy"] = np.random.get_state()
    torch.save(state, finished / "states" / LAST)
    with pytest.raises(CheckpointError, match="earlier version.*--resume no") as caught:
        loop(Line(), finished, 30)
    assert LAST in str(caught.value) and "\n" not in str(caught.value)


def test_starting_over_asks_no_state(finished: Path, tmp_path: Path) -> None:
    torch.save({"iteration": 25, "x": GADGETS["exec"](tmp_path / "ran")}, finished / "states/state-00000025.pt")
    assert run_stage(Line(), LoopConfig(finished, 20, resume=False), {}) == 0 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [
    b"", b"x", b"PK\x03\x04", b"\x80\x02.", "list", "folder", "bool", "bomb"])
def test_damaged_states_are_passed_over(finished: Path, content: object, caplog: pytest.LogCaptureFixture) -> None:
    path = finished / "states/state-00000025.pt"
    if content == "list":
        archive(path, Op.LIST)
    elif content == "bool":
        torch.save({"iteration": True}, path)
    elif content == "bomb":
        archive(path, Op.LIST + Op.put(0) + Op.get(0) + Op.APPEND)
    elif content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    with no_hang():
        assert loop(Line(), finished, 30).start == 20
    lines = [line for line in caplog.messages if path.name in line]
    assert content == "folder" or len(lines) == 1 and "going back" in lines[0] and "\n" not in lines[0]


def test_a_flipped_bit_of_a_weight_is_noticed(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A state that is read in one piece has checksums; before they were not compared."""
    state = torch.load(finished / "states" / LAST)
    weight = state["model"]["weight"].numpy().tobytes()
    whole = bytearray((finished / "states" / LAST).read_bytes())
    whole[whole.index(weight)] ^= 1
    (finished / "states" / LAST).write_bytes(whole)
    assert loop(Line(), finished, 30).start == 15 and "CRC" in caplog.text


def test_a_state_for_which_there_is_no_memory_is_not_passed_over(finished: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")
    monkeypatch.setattr("models.weights.unpickle._ZipFormat.storage", no_memory)
    with pytest.raises(TooLargeError, match=LAST):
        loop(Line(), finished, 30)


# --- what states hold ---

def plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) in (str, int) and plain(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return type(value) in (int, float, bool, str, type(None), torch.Tensor)


def test_what_optimisers_and_scalers_keep_comes_back(tmp_path: Path) -> None:
    """tests/training/test_stages.py shows it of every stage's own state."""
    stage = Line()
    stage.train_step(0, 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))
    state = {**stage.state_dict(), "scaler": scaler.state_dict(), "rng": [rng_state()]}
    assert plain(state)
    folder = StateFolder(tmp_path)
    folder.save(1, state)
    loaded = folder.load_newest()
    assert _same(loaded, {"iteration": 1, **state}) and loaded["scaler"]["scale"] == 8.0


def _same(left: Any, right: Any) -> bool:
    if isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and left.stride() == right.stride() and torch.equal(left, right)
    if isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], value) for key, value in right.items())
    if isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return type(left) is type(right) and left == right


def test_generators_go_on_as_they_would_have(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]
    draw()  # both have a second normal number in store
    save_atomically({"iteration": 1, "rng": rng_state()}, tmp_path / "state-00000001.pt")
    expected = [draw() for _ in range(400)]  # past the 624 numbers of a Mersenne state
    restore_rng_state(StateFolder(tmp_path).load_newest()["rng"])
    assert [draw() for _ in range(400)] == expected


# --- states that do not fit ---

def altered(finished: Path, change: Any) -> str:
    """The one line that a resume ends with, after a change of the newest state."""
    path = finished / "states" / LAST
    state = torch.load(path)
    change(state)
    torch.save(state, path)
    with no_hang(), pytest.raises(UserError) as caught:
        loop(Line(), finished, 30)
    message = str(caught.value)
    assert "\n" not in message and "--resume no" in message
    return message


@pytest.mark.parametrize("change", [
    lambda state: state.pop("rng"), lambda state: state.update(rng=3), lambda state: state.update(skipped="x"),
    lambda state: state.update(model=[1]), lambda state: state["model"].update(weight=torch.ones(7)),
    lambda state: state.update(optimizer={}), lambda state: state["optimizer"]["param_groups"].clear(),
    lambda state: state["optimizer"]["state"].update({7: {"step": torch.ones(())}}),
    lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
    lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(())),
    lambda state: state["optimizer"]["state"][0].update(step=torch.zeros(0)),
    lambda state: state["rng"][0].update(torch=torch.zeros(3)),
    lambda state: state["rng"][0].update(torch=torch.full_like(state["rng"][0]["torch"], 255)),
    lambda state: state["rng"][0].update(python=(3, (1, 2), None)),
    lambda state: state["rng"][0].update(numpy=("MT19937", torch.zeros(624, dtype=torch.int64), 10 ** 6, 0, 0.0)),
    lambda state: state["rng"][0].update(numpy=("MT19937", torch.zeros(3, dtype=torch.int64), 1, 0, 0.0)),
    lambda state: state["rng"][0].update(numpy=("PCG64", torch.zeros(3, dtype=torch.int64), 1, 0, 0.0)),
    lambda state: state.update(generator=torch.zeros(4))])
def test_what_does_not_fit_is_said(finished: Path, change: Any) -> None:
    assert "does not fit" in altered(finished, change)


def test_moments_have_the_shapes_of_their_parameters() -> None:
    """The fused kernel reads and writes as many numbers as the parameter has, wherever that leads."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state_dict()
    restore_optimizer(optimizer, state)
    with pytest.raises(ValueError, match="exp_avg_sq"):
        restore_optimizer(optimizer, {**state, "state": {0: {**state["state"][0], "exp_avg_sq": torch.zeros(2)}}})


@pytest.mark.parametrize("best", [
    "", "[]", "3", "{", '{"iteration": 5}', '{"iteration": "x", "score": "y"}', '{"iteration": 5, "score": null}',
    '{"iteration": 5, "score": NaN}', '{"iteration": true, "score": 1.0}', "[" * 100_000,
    '{"iteration": 5, "score": 1' + "0" * 100_000 + "}"], ids=lambda text: text[:30])
def test_a_record_of_the_best_that_is_none(tmp_path: Path, best: str) -> None:
    folder = StateFolder(tmp_path, keep=1)
    (tmp_path / "best.json").write_text(best)
    with no_hang():
        assert folder.is_best(-1e30)
        folder.save(1, {})
        folder.save(2, {})
        assert [path.name for path in folder.files()] == ["state-00000002.pt"]
        folder.note_best(2, 0.5)
    assert json.loads((tmp_path / "best.json").read_text()) == {"iteration": 2, "score": 0.5}
    assert not folder.is_best(0.5) and folder.is_best(0.75)


def test_the_log_of_a_good_resume_is_quiet(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert loop(Line(), finished, 30).start == 20
    assert not caplog.messages
