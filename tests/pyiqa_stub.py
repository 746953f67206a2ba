"""A stand-in for pyiqa, which needs weights from a network."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation.metrics import learned


def stand_in(monkeypatch: pytest.MonkeyPatch, **models: Callable[..., float]) -> None:
    """Have metrics find a pyiqa that has these models and no others."""
    def create_metric(name: str, device: object) -> Callable[..., float]:
        return models[name]
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    monkeypatch.setattr(learned, "_has_pyiqa", lambda: True)
    monkeypatch.setattr(learned, "hub_at_once", contextlib.nullcontext)


class Folders:
    """Stands in for FID: remembers what the files in and below each pair of folders hold, as pyiqa looks for them."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[bytes], list[bytes]]] = []

    def __call__(self, *folders: str) -> float:
        self.seen.append(tuple(sorted(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())
                               for folder in folders))
        return 7.5
