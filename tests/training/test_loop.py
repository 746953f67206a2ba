"""Training loop: exact resume, stop requests, broken states, diverging losses."""
from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from training.log import TrainingLog
from training.loop import LoopConfig, TrainingDiverged, TrainLoop
from training.run import run_stage
from training.states import StateFolder, save_atomically
from utils.errors import UserError
from utils.ranks import Ranks


class Regression:
    """A stage of ten lines: fits a line to noisy points drawn from its own generator."""

    best_metric = ("weight", 1.0)

    def __init__(self, break_from: int = 10_000, stop_at: int = -1) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.generator = torch.Generator().manual_seed(1)
        self.break_from, self.stop_at, self.losses, self.exported = break_from, stop_at, [], []

    def train_step(self, iteration: int, place: float) -> dict[str, float]:
        x = torch.randn(8, 3, generator=self.generator)
        loss = (self.model(x) - x.sum(1, keepdim=True) - torch.randn(1)).square().mean()  # global generator too
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        if iteration == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": float("nan") if iteration >= self.break_from else loss.item()}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])

    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        return {"weight": float(self.model.weight.detach().sum())}

    def export(self, folder: Path) -> None:
        self.exported.append(folder)


def loop(stage: Regression, folder: Path, iters: int = 20) -> TrainLoop:
    return TrainLoop(stage, LoopConfig(folder, iters, log_every=1, report_every=7, save_every=5), {"note": "test"})


def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = Regression()
    assert loop(whole, tmp_path / "a").run() and whole.exported[-1] == tmp_path / "a"
    stopped = Regression(stop_at=11)
    assert not loop(stopped, tmp_path / "b").run() and tmp_path / "b" not in stopped.exported
    resumed = Regression()
    assert loop(resumed, tmp_path / "b").run()
    assert stopped.losses + resumed.losses == whole.losses
    assert torch.equal(whole.model.weight, resumed.model.weight)


def test_a_truncated_state_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = Regression()
    loop(whole, tmp_path / "a").run()
    stopped = Regression(stop_at=11)
    loop(stopped, tmp_path / "b").run()
    newest = StateFolder(tmp_path / "b" / "states").files()[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    resumed = Regression()
    loop(resumed, tmp_path / "b").run()
    assert newest.name in caplog.text
    assert torch.equal(whole.model.weight, resumed.model.weight)


def test_a_diverged_run_stops_and_keeps_its_state(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="10 steps"):
        loop(Regression(break_from=6), tmp_path).run()
    assert [path.name for path in StateFolder(tmp_path / "states").files()] == ["state-00000005.pt"]


def test_gradients_that_stay_broken_end_a_run_too(tmp_path: Path) -> None:
    stage = Regression()
    step = stage.train_step
    stage.train_step = lambda *where: {**step(*where), "grad_norm": float("nan")}
    with pytest.raises(TrainingDiverged, match="10 steps"):
        loop(stage, tmp_path).run()


def test_broken_steps_are_counted_also_over_a_resume(tmp_path: Path) -> None:
    def run(iters: int, broken: tuple[int, ...]) -> None:
        stage = Regression()
        step = stage.train_step
        stage.train_step = lambda i, place: {**step(i, place), **({"loss": float("inf")} if i in broken else {})}
        loop(stage, tmp_path, iters).run()
    run(10, (3, 5, 6))
    run(20, (12,))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    counts = {line["iteration"]: line.get("skipped_steps") for line in lines if line["event"] == "train"}
    assert counts[3] is None and counts[4] == 1 and counts[10] == 3 and counts[20] == 4


def test_the_best_state_stays_and_the_model_is_written(tmp_path: Path) -> None:
    stage, scores = Regression(), iter([1.0, 3.0, 2.0, 2.5, 0.0])
    stage.report = lambda folder, iteration: {"weight": next(scores)}
    TrainLoop(stage, LoopConfig(tmp_path, 20, report_every=4, save_every=2, keep=2), {}).run()
    assert [path.name for path in StateFolder(tmp_path / "states").files()] == [
        "state-00000008.pt", "state-00000018.pt", "state-00000020.pt"]
    assert stage.exported == [tmp_path / "best", tmp_path / "best", tmp_path]


def test_a_run_that_starts_over_keeps_its_own_states(tmp_path: Path) -> None:
    def run(iters: int, score: float, resume: bool = False, stop_at: int = -1) -> TrainLoop:
        stage = Regression(stop_at=stop_at)
        stage.report = lambda folder, iteration: {"weight": score - iteration}
        made = TrainLoop(stage, LoopConfig(tmp_path, iters, report_every=4, save_every=3, keep=2, resume=resume), {})
        made.run()
        return made
    run(20, 100.0)
    before = {path.name for path in (tmp_path / "states").iterdir()}
    assert run(20, 50.0, stop_at=0).start == 0
    assert [path.name for path in StateFolder(tmp_path / "states").files()] == ["state-00000001.pt"] and before
    run(20, 30.0)  # worse than both: its best one is its own all the same
    assert [path.name for path in StateFolder(tmp_path / "states").files()] == [
        "state-00000004.pt", "state-00000018.pt", "state-00000020.pt"]
    assert run(22, 30.0, resume=True).start == 20


def test_what_is_best_is_decided_by_the_main_process(tmp_path: Path) -> None:
    """Else some would save a state, which all do together, and wait for the others for ever."""
    class Second(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [False if isinstance(value, bool) else value, value]
    stage, ranks = Regression(), Second()
    ranks.rank = 1
    assert TrainLoop(stage, LoopConfig(tmp_path, 20, report_every=4, resume=False), {}, ranks=ranks).run()
    assert stage.exported == [tmp_path]


def test_a_run_by_the_clock_begins_where_all_processes_agree(tmp_path: Path) -> None:
    """Resumed ones have places of their own: one may be at the end while others go on, and wait for it."""
    agreed, seen = iter([600.0, 2000.0]), []

    class Several(Ranks):
        def mean(self, values: Mapping[str, float]) -> dict[str, float]:
            return {**values, "place": next(agreed)}
    stage = Regression()
    step = stage.train_step
    stage.train_step = lambda iteration, place: step(iteration, seen.append(place) or place)
    assert TrainLoop(stage, LoopConfig(tmp_path, 0, minutes=1), {}, ranks=Several()).run() and seen == [600.0]


def test_a_new_state_outlives_a_damaged_one_after_it(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, keep=1)
    (tmp_path / "state-00000009.pt").write_bytes(b"damaged")
    folder.save(3, {"value": 1})
    assert StateFolder(tmp_path).load_newest() == {"iteration": 3, "value": 1}


def test_processes_that_see_other_states_are_refused(tmp_path: Path) -> None:
    class Apart(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, 500 if isinstance(value, int) else value]
    with pytest.raises(UserError, match="one folder for all"):
        TrainLoop(Regression(), LoopConfig(tmp_path, 20), {}, TrainingLog([]), Apart())


@pytest.mark.skipif(os.geteuid() != 0, reason="NOTICE: no test of a full disk without the right to mount one")
def test_a_full_disk_leaves_the_old_state_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True).returncode:
        pytest.skip("NOTICE: no test of a full disk, it cannot be mounted here")
    try:
        stage = Regression()
        state = stage.state_dict
        stage.state_dict = lambda: {**state(), "more": torch.zeros(100_000 if len(stage.losses) < 8 else 10 ** 6)}
        assert loop(stage, small).run()  # goes on, and says what is wrong
        assert "make room" in caplog.text and sorted(path.name for path in (small / "states").iterdir()) == [
            "best.json", "state-00000005.pt", "state-00000007.pt"]  # by schedule, and the best report
        assert loop(Regression(), small).start == 7
    finally:
        subprocess.run(["umount", small], check=True)


def test_log_lines_are_json(tmp_path: Path) -> None:
    loop(Regression(break_from=6), tmp_path, iters=12).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "start" and lines[0]["note"] == "test"
    assert [line["iteration"] for line in lines if line["event"] == "train"] == list(range(1, 13))
    assert [line["iteration"] for line in lines if line["event"] == "report"] == [7, 12]


def test_a_failed_write_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_atomically({"value": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"value": lambda: 0}, path)
    assert torch.load(path)["value"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name, before, after", [("batch_size", 8, 4), ("ranks", 1, 2), ("max_iters", 20, 30)])
def test_a_resume_with_other_settings_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, before: int,
                                              after: int) -> None:
    config = LoopConfig(tmp_path, 10, save_every=5)
    same = {"batch_size": 8, "ranks": 1, "max_iters": 20}
    TrainLoop(Regression(), config, {**same, name: before}).run()
    TrainLoop(Regression(), config, {**same, name: before})
    assert not caplog.messages
    TrainLoop(Regression(), config, {**same, name: after})
    told = [line for line in caplog.messages if line.startswith(name)]
    assert len(told) == 1 and str(before) in told[0] and str(after) in told[0]


def test_a_state_beyond_the_end_is_refused(tmp_path: Path) -> None:
    loop(Regression(), tmp_path, 20).run()
    with pytest.raises(UserError, match="--max_iters is 10"):
        loop(Regression(), tmp_path, 10)
    assert loop(Regression(), tmp_path, 20).run()  # finished already: the model is written again


def test_a_stopped_run_has_the_exit_code_of_its_signal(tmp_path: Path) -> None:
    assert run_stage(Regression(stop_at=2), LoopConfig(tmp_path, 20), {}) == 143
