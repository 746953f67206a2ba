"""Whose turn it is, without a page: order, one job a session, cancellation before, while and after it waits."""
from __future__ import annotations

import pytest
from loops import run

from utils.errors import UserError
from web import sessions as module
from web.sessions import Cancelled, Job, Sessions


def is_over(job: Job) -> bool:
    try:
        job.check()
    except Cancelled:
        return True
    return False


def test_jobs_work_in_the_order_they_came() -> None:
    sessions = Sessions(places=5, seconds=9)
    jobs = [sessions.enter(name, at) for at, name in enumerate("abc")]
    assert [sessions.before(job) for job in reversed(jobs)] == [2, 1, 0]
    assert [sessions.before(job) for job in jobs[1:]] == [1, 2]  # the first one works
    sessions.leave(jobs[0])
    sessions.leave(jobs[1])  # which does not want to wait any longer
    assert sessions.before(jobs[2]) == 0


def test_of_a_session_only_the_newest_job_lives() -> None:
    sessions = Sessions(places=5, seconds=9)
    first, other = sessions.enter("a", 1), sessions.enter("b", 2)
    assert sessions.before(first) == 0
    second = sessions.enter("a", 3)
    third = sessions.enter("a", 4)
    assert is_over(first) and is_over(second) and not is_over(third) and not is_over(other)
    assert sessions.is_replaced(first) and sessions.is_replaced(second)
    with pytest.raises(Cancelled):
        sessions.before(second)
    sessions.leave(first)
    assert sessions.before(other) == 0 and sessions.before(third) == 1


def test_a_job_that_begins_after_a_newer_one_is_over() -> None:
    """gradio may begin with what was clicked in another order, or long after the click."""
    sessions = Sessions(places=5, seconds=9)
    newer = sessions.enter("a", 2)
    assert is_over(sessions.enter("a", 1)) and not is_over(newer)
    sessions.cancel("b", 5)
    late = sessions.enter("b", 4)
    assert is_over(late) and not sessions.is_replaced(late)
    assert not is_over(sessions.enter("b", 6))


def test_cancel_is_for_ones_own_older_jobs() -> None:
    sessions = Sessions(places=5, seconds=9)
    working, waiting, other = (sessions.enter(name, at) for at, name in enumerate("abc"))
    assert sessions.before(working) == 0
    sessions.cancel("b", 5)
    assert is_over(waiting) and not is_over(working) and sessions.before(other) == 1
    sessions.cancel("a", 9)
    assert is_over(working) and not sessions.is_replaced(working)
    assert sessions.before(other) == 1  # until it has noticed
    sessions.cancel(None, 9)
    sessions.cancel("c", 1)  # pressed before the click on the job, though it comes later
    assert not is_over(other)


def test_a_full_line_refuses_and_leaves_the_rest_alone() -> None:
    sessions = Sessions(places=2, seconds=9)
    working = sessions.enter("a", 1)
    assert sessions.before(working) == 0
    waiting = [sessions.enter("b", 2), sessions.enter("c", 3)]
    with pytest.raises(UserError, match="2 jobs are waiting"):
        sessions.enter("a", 4)
    assert not any(map(is_over, (working, *waiting)))
    again = sessions.enter("b", 5)  # in place of its older one, though behind the others
    assert sessions.before(again) == 2
    sessions.cancel("c", 6)
    sessions.enter("d", 7)


def test_a_job_has_so_much_time_from_its_turn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sessions = Sessions(places=2, seconds=10)
    job = sessions.enter("a", 1)
    now[0] += 1000  # waiting costs nothing
    job.check()
    assert sessions.before(job) == 0
    now[0] += 9
    job.check()
    now[0] += 2
    with pytest.raises(UserError, match="stopped after 10 s"):
        job.check()


def test_waiting_is_told_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(module, "NEWS_SECONDS", 0.01)
    sessions = Sessions(places=2, seconds=9)
    first, second = sessions.enter("a", 1), sessions.enter("b", 2)

    async def wait() -> list[int]:
        assert [place async for place in sessions.turn(first)] == []
        news = sessions.turn(second)
        found = [await anext(news), await anext(news)]
        sessions.leave(first)
        assert [place async for place in news] == []
        third = sessions.enter("c", 3)
        sessions.cancel("c", 4)
        with pytest.raises(Cancelled):
            await anext(sessions.turn(third))
        return found
    assert run(wait()) == [1, 1]


def test_nothing_grows_with_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 10)
    sessions = Sessions(places=3, seconds=9)
    working, waiting = sessions.enter("works", 0), sessions.enter("waits", 0)
    assert sessions.before(working) == 0
    for number in range(100):
        session = f"s{number}"
        if number % 3:
            sessions.leave(sessions.enter(session, number))
        else:
            sessions.cancel(session, number)  # of one that never had a job
    assert len(sessions._last) <= 13
    assert not is_over(working) and sessions.before(waiting) == 1
