"""What of results is kept for redoing: each session's last one, for that session alone, in bounded memory."""
from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import run

from inference.settings import LRConsistency, RestoreSettings
from inference.tokens import Making, TokenState
from models.config import GenerationConfig
from pictures.file_reader import Metadata
from pictures.picture import Picture
from utils.errors import UserError
from web.kept import CHANGED, GONE, MAX_REDO_PIXELS, Result, Results, Variant, can_redo
from web.sessions import Cancelled, Job, Sessions

SETTINGS = RestoreSettings(GenerationConfig())
PLENTY = 10 ** 6


def made(choices: int = 0) -> Result:
    """A result of 8x8 pixels."""
    making = Making((8, 8), "", 0.25, 0, SETTINGS.generation, "none")
    state = TokenState(making, {0: torch.zeros(5, dtype=torch.long)}, {0: torch.zeros(2, 2, 2)}, 1)
    variant = Variant(torch.zeros(3, 8, 8), state, ())
    source = Picture(np.zeros((2, 2, 3), np.uint8), None, False, Metadata(), "png")
    return Result("model", source, SETTINGS, "a.png", variant, (variant,) * choices)


@pytest.fixture()
def jobs() -> Sessions:
    return Sessions(10, math.inf)


def job(jobs: Sessions, session: str = "a", clicked: int = 1) -> Job:
    return jobs.enter(session, clicked)


def test_a_session_has_its_own_last_result_alone(jobs: Sessions) -> None:
    kept, first, second = Results(PLENTY), made(), made()
    kept.keep(job(jobs), first)
    assert kept.get("a", first.key) is first
    for stranger in ("b", None):
        with pytest.raises(UserError, match="restore the picture first") as caught:
            kept.get(stranger, first.key)
        assert str(caught.value) == GONE
    kept.keep(job(jobs, clicked=2), second)
    for key in (first.key, "", None, [], {"a": 1}, 5):
        with pytest.raises(UserError, match="has changed meanwhile"):
            kept.get("a", key)
    kept.drop("b")
    assert kept.get("a", second.key) is second
    kept.drop("a")
    with pytest.raises(UserError, match="restore the picture first"):
        kept.get("a", second.key)


def test_a_job_that_is_over_leaves_nothing(jobs: Sessions) -> None:
    kept, ended = Results(PLENTY), job(jobs)
    jobs.cancel("a", 2)
    with pytest.raises(Cancelled):
        kept.keep(ended, made())
    assert not kept._kept


def test_what_was_made_of_another_result_is_refused(jobs: Sessions) -> None:
    kept, old, new = Results(PLENTY), made(), made()
    kept.keep(job(jobs), old)
    kept.keep(job(jobs, clicked=2), new, instead_of=old)
    with pytest.raises(UserError) as caught:
        kept.keep(job(jobs, clicked=3), made(), instead_of=old)
    assert str(caught.value) == CHANGED and kept.get("a", new.key) is new


def test_a_session_that_ends_is_forgotten(jobs: Sessions, tmp_path: Path) -> None:
    workshop = pytest.importorskip("web.workshop", reason="NOTICE: no test of the web page without gradio")
    shop, result = workshop.Workshop(None, None, jobs, Sessions(10, math.inf), tmp_path, None), made()
    ended = job(jobs)
    shop.kept.keep(ended, result)
    run(shop.leave(argparse.Namespace(session_hash="a")))
    with pytest.raises(UserError, match="restore the picture first"):
        shop.kept.get("a", result.key)
    with pytest.raises(Cancelled):  # a job that was about to end
        shop.kept.keep(ended, result)


def test_a_job_without_a_folder_makes_way_for_the_others(jobs: Sessions, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = pytest.importorskip("web.workshop", reason="NOTICE: no test of the web page without gradio")
    monkeypatch.setattr(workshop, "clicked_at", lambda request: 1)
    shop = workshop.Workshop(None, None, jobs, Sessions(10, math.inf), tmp_path, tmp_path / "gone")
    follow = shop.follower(lambda session: lambda *_: None, lambda update, first: (), 1, [str(tmp_path)])

    async def line() -> list[tuple]:
        return [shown async for shown in follow(argparse.Namespace(session_hash="a"))]
    shown = run(line())
    assert len(shown) == 1 and "gone" not in str(shown) and "No such file" in str(shown)

    async def alone() -> list[int]:
        return [before async for before in jobs.turn(job(jobs, "b", 2))]
    assert run(alone()) == []


def test_the_oldest_go_where_there_is_no_room(jobs: Sessions) -> None:
    each = made().bytes
    assert each == 3 * 8 * 8 * 4 + 5 * 8 + 8 * 4 + 12 and made(choices=4).bytes == each * 5 - 4 * 12
    kept = Results(each * 2)
    results = {name: made() for name in "abc"}
    for name, result in results.items():
        kept.keep(job(jobs, name), result)
    with pytest.raises(UserError, match="restore the picture first"):
        kept.get("a", results["a"].key)
    assert all(kept.get(name, results[name].key) is results[name] for name in "bc")


def test_what_can_be_redone() -> None:
    assert can_redo((1024, MAX_REDO_PIXELS // 1024), SETTINGS) and not can_redo((1025, 1024), SETTINGS)
    assert not can_redo((8, 8), RestoreSettings(SETTINGS.generation, lr_consistency=LRConsistency(1.0)))
    assert not can_redo((8, 8), RestoreSettings(GenerationConfig(more_smooth=True)))
