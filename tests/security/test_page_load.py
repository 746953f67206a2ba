"""The page under load: every good job is right, none is lost, memory stays."""
from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="NOTICE: no load test of the page without gradio")

CLIENTS, JOBS = 50, 120
WARM_SHARE = 0.4  # of the jobs
MAX_GROWTH = 20e6  # bytes of the server's memory once it is warm


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="NOTICE: no load test without /proc")
def test_many_visitors_at_once(tmp_path: Path) -> None:
    from tests.security.page_load import run_load
    tally = run_load(tmp_path, CLIENTS, JOBS)
    assert not tally.wrong
    assert tally.ends.total() == JOBS and tally.ends["good"] >= JOBS * 0.6
    warm = tally.memory[int(len(tally.memory) * WARM_SHARE):]
    assert warm[-1] - warm[0] < MAX_GROWTH


