"""Training checkpoints on disk: written whole or not at all, the last few and the best kept, the newest readable one
resumed."""
from __future__ import annotations

import json
import logging
import math
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import replacing

log = logging.getLogger(__name__)

_PATTERN = re.compile(r"state-(\d+)\.pt$")


def save_atomically(state: Any, path: Path) -> None:
    """`torch.save` to a temporary name, flushed to disk, then renamed: a crash leaves the old file whole.

    Raises OSError where it cannot be written.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # closing its archive, torch hides what the disk said
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def rng_state() -> dict[str, Any]:
    """State of every random number generator that training draws from."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(),
                             "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's device
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Set every generator to a state that `rng_state` gave."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class StateFolder:
    """The `state-ITERATION.pt` files of one run, and in `best.json` which of them validated best."""

    BEST = "best.json"

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def _path(self, iteration: int) -> Path:
        return self.folder / f"state-{iteration:08d}.pt"

    def _best(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / self.BEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or cut off by a crash: the next good one takes its place
            return {"iteration": None, "score": -math.inf}

    def is_best(self, score: float) -> bool:
        """Whether a score is above that of the best state so far."""
        return score > self._best()["score"]

    def note_best(self, iteration: int, score: float) -> None:
        """Keep the state of this iteration until there is a better one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / self.BEST) as temporary:
            temporary.write_text(json.dumps({"iteration": iteration, "score": score}), encoding="utf-8")

    def files(self) -> list[Path]:
        """State files, oldest first."""
        found = [(int(match[1]), path) for path in self.folder.glob("state-*.pt")
                 if (match := _PATTERN.search(path.name))]
        return [path for _, path in sorted(found)]

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write the state of a finished iteration and drop the oldest files beyond `keep`, but not the best one."""
        path = self._path(iteration)
        save_atomically({"iteration": iteration, **state}, path)
        best = self._best()["iteration"]
        for old in self.files()[:-self.keep]:
            if best is None or old != self._path(best):
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
