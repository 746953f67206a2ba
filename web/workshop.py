"""What the page's buttons and fields do: jobs wait for their turn at the model, tell how they get on, and end in one
line."""
from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import anyio.to_thread
import gradio as gr

from models.weights.load import CHECKPOINTS
from pictures.rgb import over_white, to_pillow
from utils.errors import UserError

from .decoding import Decoder
from .gate import clicked_at
from .jobs import Models, Tell, Update, stream
from .kept import Results
from .messages import as_markdown, one_line
from .preview import fitted
from .sessions import Cancelled, Job, Sessions
from .uploads import is_upload

KEPT_BYTES = 2 ** 29  # of results that parts can be redone of, all sessions together
READY = "Drop a picture or take an example."
WAITING = "waiting for the model"
CANCELLED = "cancelled"
BAR_CELLS = 20

Work = Callable[[Job, Path, Tell], None]  # with a folder for what it writes


@dataclass(frozen=True)
class Workshop:
    """What all pages share: jobs take turns at the one model, looks at pictures at the one decoder. uploads: gradio's
    folder; work: another one, for files that nobody is given, None for the system's place; kept: what can be redone."""

    models: Models
    decoder: Decoder
    jobs: Sessions
    looks: Sessions
    uploads: Path
    work: Path | None
    kept: Results = field(default_factory=lambda: Results(KEPT_BYTES))

    @classmethod
    def of_flags(cls, args: argparse.Namespace, uploads: Path, work: Path | None) -> Workshop:
        """By the flags of app.py."""
        decoder = Decoder(round(args.max_pixels * 1e6), work)
        decoder.start()
        return cls(Models(args.device, args.dtype), decoder, Sessions(args.max_waiting, args.max_seconds),
                   Sessions(args.max_waiting, math.inf), uploads, work)

    async def cancel(self, request: gr.Request) -> None:
        """Stop this session's jobs; they tell their end themselves."""
        self.jobs.cancel(request.session_hash, clicked_at(request))

    async def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        for sessions in (self.jobs, self.looks):
            sessions.cancel(request.session_hash, time.monotonic_ns())
        self.kept.drop(request.session_hash)

    def uploaded(self, value: object) -> Path:
        """The picture in a field. Raises UserError where there is none."""
        if value is None:
            raise UserError("there is no picture yet: drop one or take an example")
        path = value.get("path") if isinstance(value, dict) else None
        if not is_upload(self.uploads, path):
            raise UserError("the picture is not here any more: drop it again")
        return Path(path)

    def follower(self, prepared: Callable[..., Work], show: Callable[[Update, bool], tuple], outputs: int,
                 places: Sequence[str], line: Sessions | None = None) -> Callable[..., AsyncIterator[tuple]]:
        """What a button does: prepare a job from its session and fields, wait for its turn, show what it tells. Its
        end, good or bad, is one line in the first of so many outputs.

        show: the outputs for news, and whether they are a job's first. places: paths that messages may hold. line:
        where to wait, by default with all jobs that need the model.
        """
        line, rest = line or self.jobs, (gr.skip(),) * (outputs - 1)

        async def follow(request: gr.Request, *fields: object) -> AsyncIterator[tuple]:
            try:
                work = prepared(request.session_hash, *fields)
                job = line.enter(request.session_hash, clicked_at(request))
            except Exception as error:
                yield failure_line(error, places), *rest
                return
            end, first = None, True
            try:
                # gradio has its own copy of what it was shown
                with tempfile.TemporaryDirectory(prefix="varsr_", dir=self.work, ignore_cleanup_errors=True) as folder:
                    async for before in line.turn(job):
                        yield as_markdown(f"{WAITING}: {before} before this one"), *rest
                    async with aclosing(stream(lambda tell: work(job, Path(folder), tell), job.check)) as news:
                        async for update in news:
                            yield await anyio.to_thread.run_sync(show, update, first)
                            first = False
            except Cancelled:
                end = gr.skip() if line.is_replaced(job) else CANCELLED
            except Exception as error:
                end = failure_line(error, places)
            finally:
                line.leave(job)  # whatever happened: the others wait for it
            if end is not None:
                yield end, *rest
        return follow

    def looker(self, hidden: tuple) -> Callable[..., Awaitable[tuple]]:
        """What the field for the picture does: show it, in place of a result, which is forgotten. hidden: the outputs
        behind the line and the picture."""
        async def look(file: object, request: gr.Request) -> tuple:
            nothing = gr.update(value=None, visible=True), *hidden
            self.kept.drop(request.session_hash)
            if file is None:
                return READY, *nothing
            job = None
            try:
                path = self.uploaded(file)
                job = self.looks.enter(request.session_hash, clicked_at(request))
                async for _ in self.looks.turn(job):
                    pass
                line, shown = await anyio.to_thread.run_sync(self._look, path, job)
                return as_markdown(line), gr.update(value=shown, visible=True), *hidden
            except Cancelled:
                return (gr.skip(),) * (2 + len(hidden))
            except Exception as error:
                return failure_line(error), *nothing
            finally:
                if job is not None:
                    self.looks.leave(job)
        return look

    def _look(self, path: Path, job: Job) -> tuple:
        picture = self.decoder.read(path, job.check)
        line = f"{path.name}: {picture.width}x{picture.height} pixels, {picture.color.dtype.itemsize * 8} bits"
        return line, to_pillow(fitted(over_white(picture)))


def status_line(update: Update) -> str:
    """News with a bar, in Markdown."""
    message = as_markdown(update.message)
    if update.file is not None:
        return f"✔ {message}"
    full = round(update.share * BAR_CELLS)
    return f"`{'█' * full}{'░' * (BAR_CELLS - full)}` {message}"


def failure_line(error: Exception, places: Sequence[str] = ()) -> str:
    """A failure, in Markdown."""
    return f"⚠ {as_markdown(one_line(error, [*places, CHECKPOINTS.parent, Path.home()]))}"
