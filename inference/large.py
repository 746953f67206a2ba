"""One large picture by all ranks, step by step, so that an interrupted run can go on where it stopped."""
from __future__ import annotations

import time
from collections.abc import Iterator

from models.varsr import VARSR
from utils.ranks import Ranks

from .generate import BatchSize, Progress, generate_windows
from .render import render
from .report import Started
from .settings import RestoreSettings
from .work_folder import Flags, WorkFolder


def restore_large(model: VARSR, started: Started, folder: WorkFolder, settings: RestoreSettings, batch: BatchSize,
                  ranks: Ranks, progress: Progress) -> None:
    """Generate the windows, render the rows, write the result: each step by all ranks, the file by the first.

    Steps that the work folder knows as done are left out. What fails on one rank fails on all.
    """
    grid, record = started.tiled.grid, started.record
    begun = time.monotonic()
    # rank 0 says what is missing: another rank may look only after the first new windows are there
    missing = ranks.gather([window.index for window in grid if window.index not in started.tiled.finished])[0]
    own = set(ranks.stretch(missing))
    progress(len(grid) - len(missing))
    work = [(started.tiled, window) for window in grid if window.index in own]
    ranks.together(lambda: generate_windows(model, work, settings, batch, progress))
    generated = time.monotonic()
    flags = folder.finished_rows(len(started.tiled.decoding.rows))
    rows = ranks.stretch(ranks.gather(flags.missing())[0])
    ranks.together(lambda: _render_rows(model, started, settings, batch, flags, rows))
    rendered = time.monotonic()
    ranks.together(lambda: ranks.rank or started.result.finish())
    record.generate_seconds, record.render_seconds = generated - begun, rendered - generated
    record.write_seconds = time.monotonic() - rendered


def _render_rows(model: VARSR, started: Started, settings: RestoreSettings, batch: BatchSize, flags: Flags,
                 rows: list[int]) -> None:
    """Render these rows of decoded windows, each up to where the next one starts, and flag what is written."""
    tiled = started.tiled
    edges = [start * tiled.factor for start in tiled.decoding.rows.starts] + [tiled.height]
    for first, last in _runs(rows):
        open_rows = list(range(first, last + 1))
        for top, pixels in render(model, tiled, tiled.finished, settings.color_fix, batch, edges[first],
                                  min(edges[last + 1], tiled.height), settings.generation.fidelity):
            started.result.write_rows(top, pixels)
            while open_rows and edges[open_rows[0] + 1] <= top + pixels.shape[1]:
                flags.set(open_rows.pop(0))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each unbroken run of increasing numbers."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[start], numbers[i - 1]
            start = i
