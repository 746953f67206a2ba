"""Many visitors of the page at once, good, bad and gone: `python -m tests.security.page_load --clients 99 --jobs 2000`.

A third of the jobs is hostile, cancelled, replaced or left alone; the results of the others are compared with the
engine's own. The server is a program of its own, whose memory is watched.
"""
from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from inference.settings import ModelDescription
from models.weights.save import save_pretrained
from tests.conftest import noise_picture, small_model
from tests.loops import free_port, run
from tests.security.page_client import STATUS, Visitor, plain, visiting
from web.jobs import RestoreRequest, restore_file

ROOT = Path(__file__).resolve().parents[2]
CLIENTS, JOBS = 50, 200
SEEDS, SIZES = 2, ((4, 4), (5, 6))  # of the good jobs
PLENTY, MEGAPIXELS = 10 ** 7, "0.1"
START_SECONDS, SECONDS = 120, 300  # bounds for what hangs


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@dataclass
class Tally:
    """What became of the jobs, and the server's memory when so many were done."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def count(self, kind: str, status: str, *expected: str) -> None:
        """One end of a job, which says what was expected of it."""
        self.ends[kind] += 1
        if expected and not any(word in status for word in expected):
            self.wrong.append(f"{kind}: {status}")


@contextmanager
def served(model: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """app.py as a program of its own: its address and process number."""
    port = free_port()
    command = [sys.executable, str(ROOT / "app.py"), "--model", str(model), "--device", "cpu", "--dtype", "fp32",
               "--port", str(port), "--max_pixels", MEGAPIXELS, *flags]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                httpx.get(f"{address}/config")
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) * 1024


class Load:
    """The jobs of all visitors. expected: results by size and seed."""

    def __init__(self, address: str, pid: int, expected: dict[tuple, np.ndarray], jobs: int) -> None:
        self.address, self.pid, self.expected, self.jobs = address, pid, expected, jobs
        self.tally, self.done = Tally(), 0

    async def run(self, clients: int) -> Tally:
        """All of it."""
        waiting = iter(range(self.jobs))
        await asyncio.gather(*(self._client(number, waiting) for number in range(clients)))
        return self.tally

    async def _client(self, number: int, waiting: Iterator[int]) -> None:
        dice = random.Random(number)
        async with visiting(self.address) as visitor:
            for job in waiting:
                kind = dice.choice((self._broken, self._wrong_field, self._cancelled, self._replaced, self._gone)) \
                    if job % 3 == 0 else self._good
                await kind(visitor, dice)
                self.done += 1
                if self.done % 10 == 0:
                    self.tally.memory.append(resident(self.pid))

    async def _picture(self, visitor: Visitor, dice: random.Random) -> tuple[dict, tuple]:
        size, seed = dice.choice(SIZES), dice.randrange(SEEDS)
        return await visitor.upload("noise.png", png(noise_picture(*size))), (*size, seed)

    async def _good(self, visitor: Visitor, dice: random.Random) -> None:
        file, key = await self._picture(visitor, dice)
        outputs = await visitor.restore(file, seed=key[-1])
        self.tally.count("good", plain(outputs[STATUS]), "noise_x4.png")
        found = np.asarray(Image.open(io.BytesIO(await visitor.download(outputs)))).astype(int)
        if found.shape != self.expected[key].shape or np.abs(found - self.expected[key]).max() > 1:
            self.tally.wrong.append(f"another result for {key}")

    async def _broken(self, visitor: Visitor, dice: random.Random) -> None:
        file = await visitor.upload("broken.png", png(noise_picture(4, 4))[:dice.randrange(1, 60)])
        outputs = await visitor.restore(file)
        self.tally.count("broken", plain(outputs[STATUS]), "⚠ broken.png")

    async def _wrong_field(self, visitor: Visitor, dice: random.Random) -> None:
        file, _ = await self._picture(visitor, dice)
        name, value = dice.choice((("seed", -1), ("scale", float("nan")), ("cfg", "much"), ("model", []), ("kind", 5)))
        outputs = await visitor.restore(file, **{name: value})
        self.tally.count("field", plain(outputs[STATUS]), "⚠ ")

    async def _cancelled(self, visitor: Visitor, dice: random.Random) -> None:
        file, _ = await self._picture(visitor, dice)
        await visitor.post("restore", visitor.fields(file, scale=12))
        await visitor.cancel()
        (end,) = (await visitor.ends()).values()
        self.tally.count("cancelled", plain(end["output"]["data"][STATUS]), "cancelled")

    async def _replaced(self, visitor: Visitor, dice: random.Random) -> None:
        file, key = await self._picture(visitor, dice)
        await visitor.post("restore", visitor.fields(file, scale=12))
        last = (await visitor.post("restore", visitor.fields(file, seed=key[-1]))).json()["event_id"]
        end = (await visitor.ends())[last]
        self.tally.count("replaced", plain(end["output"]["data"][STATUS]), "noise_x4.png")

    async def _gone(self, visitor: Visitor, dice: random.Random) -> None:
        async with visiting(self.address) as other:
            file, _ = await self._picture(other, dice)
            await other.post("restore", other.fields(file, scale=12))
            if dice.random() < 0.5:
                async for _ in other.messages():
                    break
        self.tally.count("gone", "")


def expected_results(folder: Path) -> dict[tuple, np.ndarray]:
    """What the engine itself makes of the good jobs."""
    model, found = small_model(), {}
    for height, width in SIZES:
        source = folder / "noise.png"
        source.write_bytes(png(noise_picture(height, width)))
        for seed in range(SEEDS):
            news = []
            restore_file(model, ModelDescription("", ""), RestoreRequest(source, seed=seed), folder / "results", PLENTY,
                         news.append)
            found[height, width, seed] = np.asarray(Image.open(news[-1].file)).astype(int)
    return found


def run_load(folder: Path, clients: int, jobs: int) -> Tally:
    """All jobs on a server of their own, which answers in the end."""
    save_pretrained(small_model(), folder / "small")
    expected = expected_results(folder)
    with served(folder / "small", "--max_waiting", str(2 * clients)) as (address, pid):
        load = Load(address, pid, expected, jobs)
        run(load.run(clients), SECONDS * max(1, jobs // JOBS))
        assert httpx.get(address).status_code == 200
    return load.tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--jobs", type=int, default=JOBS)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        start = time.monotonic()
        result = run_load(Path(work), flags.clients, flags.jobs)
    print(f"{time.monotonic() - start:.0f} s", dict(result.ends), "wrong:", result.wrong[:20])
    print("MB:", [round(value / 1e6) for value in result.memory])
