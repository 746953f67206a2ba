"""Whose turn it is: one job at a time, first come, first served; of each session its newest job alone."""
from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from utils.errors import UserError

POLL_SECONDS = 0.05  # between two looks at whose turn it is
NEWS_SECONDS = 10.0  # between two news of a job that waits: gradio notices at these that its page has gone
REMEMBERED = 1000  # sessions without a job whose last click is known: gradio may begin with an older one after it


class Cancelled(Exception):
    """Nobody wants the rest any more."""


@dataclass(eq=False)
class Job:
    """What a click asks for, from its beginning to its end. clicked: when that was, the job's number; it lives while
    there is none newer of its session. deadline: of the clock `time.monotonic`, once it works."""

    session: str
    clicked: int
    sessions: Sessions
    deadline: float = math.inf

    def check(self) -> None:
        """To be called between two steps, in any thread. Raises Cancelled once the job is over, UserError once it has
        worked for too long."""
        if not self.sessions.wants(self):
            raise Cancelled
        if time.monotonic() > self.deadline:
            raise UserError(f"stopped after {self.sessions.seconds:g} s, the longest that a job may take here")


@dataclass(frozen=True)
class _Click:
    """The last one of a session: on *Cancel*, or for a job."""

    at: int
    cancels: bool


class Sessions:
    """The jobs of all pages, by the times of their clicks (`time.monotonic_ns`), in whatever order they begin.

    places: how many jobs may wait. seconds: how long one may work, at least to its next step.
    """

    def __init__(self, places: int, seconds: float) -> None:
        self.places, self.seconds = places, seconds
        self._lock = threading.Lock()
        self._last: OrderedDict[str, _Click] = OrderedDict()
        self._line: list[Job] = []  # those that wait, in the order they came
        self._working: Job | None = None

    def enter(self, session: str, clicked: int) -> Job:
        """A job at the end of the line; the older one of the session is over. Raises UserError where the line is full;
        then the older one goes on."""
        job = Job(session, clicked, self)
        with self._lock:
            if session in self._last and self._last[session].at >= clicked:
                return job
            line = [other for other in self._line if other.session != session]
            if len(line) >= self.places:
                raise UserError(f"{len(line)} jobs are waiting already: try again in a while")
            self._line = [*line, job]
            self._note(session, _Click(clicked, cancels=False))
        return job

    def wants(self, job: Job) -> bool:
        """Whether a job is its session's newest and not cancelled."""
        return self._last.get(job.session) == _Click(job.clicked, cancels=False)

    def is_replaced(self, job: Job) -> bool:
        """Whether a newer job of the session is the reason why a job is over, and not *Cancel*."""
        last = self._last.get(job.session)
        return last is not None and not last.cancels

    def before(self, job: Job) -> int:
        """How many jobs come before one that waits; at 0 it works, until it leaves. Raises Cancelled if it is over."""
        with self._lock:
            if not self.wants(job):
                raise Cancelled
            place = self._line.index(job)
            if self._working is not None or place > 0:
                return place + (self._working is not None)
            self._working = self._line.pop(0)
            job.deadline = time.monotonic() + self.seconds
            return 0

    async def turn(self, job: Job) -> AsyncIterator[int]:
        """Wait for a job's turn: how many are before it, at once and every few seconds. Raises Cancelled."""
        told = -math.inf
        while place := self.before(job):
            if time.monotonic() - told > NEWS_SECONDS:
                told = time.monotonic()
                yield place
            await asyncio.sleep(POLL_SECONDS)

    def leave(self, job: Job) -> None:
        """A job has ended or does not wait any longer; the next one may work."""
        with self._lock:
            if self._working is job:
                self._working = None
            self._line = [other for other in self._line if other is not job]

    def cancel(self, session: str | None, clicked: int) -> None:
        """No job of this session that was clicked before is wanted any more: one that waits is out of the line, one
        that works ends at its next step."""
        with self._lock:
            if session is not None and (session not in self._last or self._last[session].at < clicked):
                self._line = [job for job in self._line if job.session != session]
                self._note(session, _Click(clicked, cancels=True))

    def _note(self, session: str, click: _Click) -> None:
        """Remember a session's last click, and forget those of the sessions that have been idle for longest."""
        self._last[session] = click
        self._last.move_to_end(session)
        if len(self._last) > REMEMBERED + self.places:
            busy = {job.session for job in (*self._line, self._working) if job is not None}
            del self._last[next(old for old in self._last if old not in busy)]
