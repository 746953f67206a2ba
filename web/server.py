"""Serving the page: through the gate, with gradio's other offers switched off, and its folder kept small."""
from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio.to_thread
import gradio as gr
from starlette.middleware import Middleware

from .gate import Gate
from .uploads import Uploads

THREADS = 40  # of gradio, beside one for every job and every look that waits
SESSIONS = 100  # whose parts of the page gradio remembers, though nothing here needs that
SWEEP_SECONDS = 60.0  # between two looks at what lies in the folder of uploads
MEGABYTE = 1_000_000


def serve(page: gr.Blocks, args: argparse.Namespace, quiet: bool = False) -> None:
    """Start to serve the page, by parsed flags of app.py. Raises OSError where the port is taken."""
    uploads = Uploads(Path(page.GRADIO_CACHE), args.max_disk * MEGABYTE, page.temp_file_sets)
    uploads.keep()

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(uploads, page))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
    gate = Middleware(Gate, uploads=uploads, max_file=args.max_megabytes * MEGABYTE)
    page.launch(server_name=args.host, server_port=args.port, share=False, quiet=quiet, prevent_thread_lock=True,
                max_file_size=args.max_megabytes * MEGABYTE, max_threads=THREADS + 2 * args.max_waiting,
                state_session_capacity=SESSIONS, app_kwargs={"middleware": [gate], "lifespan": lifespan},
                footer_links=[], ssr_mode=False, run_history=False, enable_monitoring=False, mcp_server=False,
                pwa=False, num_workers=0)


def wait_for_end(page: gr.Blocks) -> None:
    """Until the program is stopped; then nothing is served any more."""
    try:
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)


async def _sweep(uploads: Uploads, page: gr.Blocks) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await anyio.to_thread.run_sync(uploads.sweep)
        forget_sessions(page)


def forget_sessions(page: gr.Blocks) -> None:
    """Let go of what gradio keeps of sessions for ever, used or not: every part of the page that a job has changed, and
    the numbers of events. Called in the loop of the server, between two steps of whatever runs."""
    page.state_holder.session_data.clear()
    page.state_holder.time_last_used.clear()
    queue = page._queue
    for session, events in list(queue.pending_event_ids_session.items()):
        if not events or session not in queue.pending_messages_per_session:
            del queue.pending_event_ids_session[session]
