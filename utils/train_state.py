"""Training checkpoints on disk: written whole or not at all, the last few kept, the newest readable one resumed."""
from __future__ import annotations

import logging
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)

_PATTERN = re.compile(r"state-(\d+)\.pt$")


def save_atomically(state: Any, path: Path) -> None:
    """`torch.save` to a temporary name, flushed to disk, then renamed: a crash leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """State of every random number generator that training draws from."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(),
                             "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Inverse of `rng_state`."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class StateFolder:
    """The `state-ITERATION.pt` files of one run."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def files(self) -> list[Path]:
        """State files, oldest first."""
        found = [(int(match[1]), path) for path in self.folder.glob("state-*.pt")
                 if (match := _PATTERN.search(path.name))]
        return [path for _, path in sorted(found)]

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write the state of a finished iteration and drop the oldest files beyond `keep`."""
        path = self.folder / f"state-{iteration:08d}.pt"
        save_atomically({"iteration": iteration, "rng": rng_state(), **state}, path)
        for old in self.files()[:-self.keep]:
            old.unlink()
        return path

    def load_newest(self) -> dict[str, Any] | None:
        """The newest readable state, or None. An unreadable file is named in the log and the one before it used."""
        for path in reversed(self.files()):
            try:
                # Our own file: it holds generator states, which are no plain tensors.
                return torch.load(path, map_location="cpu", weights_only=False)
            except Exception as error:  # a truncated file fails in many ways, all with the same remedy
                log.warning("%s cannot be read (%s): going back to the state before it", path, error)
        return None
