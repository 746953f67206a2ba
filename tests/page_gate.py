"""A gate that holds the page's jobs, so that tests of a job that is at work do not depend on a machine's speed."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import web.jobs


class Gate:
    """Stands behind the first scale of every batch of windows; open unless a test closes it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._open.set()
        patch.setattr("web.jobs.generate_windows", self._held(web.jobs.generate_windows))

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Within it a job tells its first scale and goes no further."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def _held(self, generate: Any) -> Any:
        def generate_held(model: Any, work: Any, settings: Any, batch: Any, progress: Any, on_scale: Any) -> None:
            def scale_done(*step: Any) -> None:
                on_scale(*step)
                self._open.wait()
            generate(model, work, settings, batch, progress, scale_done)
        return generate_held
