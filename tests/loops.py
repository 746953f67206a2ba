"""Coroutines and servers in tests."""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LOOPBACK = "127.0.0.1"
SECONDS = 60.0  # bound for what hangs


def run(coroutine: Coroutine, seconds: float = SECONDS) -> Any:
    """Its result, from a thread of its own: once Playwright has started it keeps a loop running in this one."""
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, seconds)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(bounded())).result()


def free_port() -> int:
    """A port of this computer that nobody listens to."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return free.getsockname()[1]
