"""Training checkpoints on disk: written whole or not at all, the last few and the best kept, the newest readable one
resumed.

States hold tensors and plain values only, so that an output folder of somebody else's can be resumed without running
what its writer likes: they are read as weights are (models/weights/unpickle.py).
"""
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

from models.weights.unpickle import CheckpointError, RefusedError, TooLargeError, load_pickle
from utils.files import replacing

log = logging.getLogger(__name__)

MAX_BEST = 1000  # bytes of best.json
FALL_BACK = "going back to the state before it"
NUMPY_ARRAY = "_reconstruct"  # what a pickled NumPy array calls: earlier versions kept one in every state
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
    """State of every random number generator that training draws from, as tensors and plain values."""
    name, key, *rest = np.random.get_state()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate(),
                             "numpy": (name, torch.from_numpy(key.astype(np.int64)), *rest)}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's device
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Set every generator to a state that `rng_state` gave. Raises ValueError or TypeError for another."""
    name, key, place, *rest = state["numpy"]
    if not 0 <= place <= len(key):  # NumPy would read there
        raise ValueError(f"a NumPy generator at {place} of {len(key)} numbers")
    torch.set_rng_state(state["torch"])
    np.random.set_state((name, key.numpy().astype(np.uint32), place, *rest))
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class StateFolder:
    """The `state-ITERATION.pt` files of one run, and in `best.json` which of them validated best."""

    BEST = "best.json"

    def __init__(self, folder: str | Path, keep: int = 2, start_over: bool = False) -> None:
        """start_over: states of an earlier run there count for nothing, and go when the first one is saved."""
        self.folder = Path(folder)
        self.keep = keep
        self._others_states = self._others_best = start_over

    def _path(self, iteration: int) -> Path:
        return self.folder / f"state-{iteration:08d}.pt"

    def _best(self) -> dict[str, Any]:
        none = {"iteration": None, "score": -math.inf}
        if self._others_best:
            return none
        try:
            with (self.folder / self.BEST).open(encoding="utf-8") as file:
                best = json.loads(file.read(MAX_BEST))
            if isinstance(best, dict) and type(best.get("iteration")) is int and type(best.get("score")) is float \
                    and not math.isnan(best["score"]):
                return best
        except (OSError, ValueError, RecursionError):
            pass
        return none  # none yet, or cut off: the next good one takes its place

    def is_best(self, score: float) -> bool:
        """Whether a score is above that of the best state so far."""
        return score > self._best()["score"]

    def note_best(self, iteration: int, score: float) -> None:
        """Keep the state of this iteration until there is a better one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / self.BEST) as temporary:
            temporary.write_text(json.dumps({"iteration": iteration, "score": score}), encoding="utf-8")
        self._others_best = False

    def files(self) -> list[Path]:
        """State files, oldest first."""
        found = [(int(match[1]), path) for path in self.folder.glob("state-*.pt")
                 if (match := _PATTERN.search(path.name)) and path.is_file()]
        return [path for _, path in sorted(found)]

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write the state of a finished iteration and drop the oldest files beyond `keep`, but not the best one."""
        path = self._path(iteration)
        save_atomically({"iteration": iteration, **state}, path)
        before = [file for file in self.files() if file != path]
        if self._others_states:
            self._forget(before)
            return path
        best = self._best()["iteration"]
        for old in before[:max(len(before) - self.keep + 1, 0)]:
            if best is None or old != self._path(best):
                old.unlink()
        return path

    def _forget(self, states: list[Path]) -> None:
        """Take away what an earlier run left."""
        for state in states:
            state.unlink()
        if self._others_best:
            (self.folder / self.BEST).unlink(missing_ok=True)
        self._others_states = self._others_best = False

    def load_newest(self) -> dict[str, Any] | None:
        """The newest readable state, or None. An unreadable file is named in the log and the one before it used.

        Raises RefusedError for one that holds more than tensors and plain values, which is no accident, and
        TooLargeError for one that may be whole.
        """
        for path in reversed(self.files()):
            try:
                state = load_pickle(path, mapped=False, remedy=FALL_BACK)  # the file may go while its tensors live
                if isinstance(state, dict) and type(state.get("iteration")) is int and state["iteration"] >= 0:
                    return state
                log.warning("%s is no training state: %s", path, FALL_BACK)
            except RefusedError as error:
                raise RefusedError(f"{_refusal(path, error)}: start over with --resume no, or take another --output",
                                   error.type_name) from error
            except TooLargeError:
                raise
            except CheckpointError as error:
                log.warning("%s", error)
            except OSError as error:
                log.warning("%s cannot be read (%s): %s", path, error, FALL_BACK)
        return None


def _refusal(path: Path, error: RefusedError) -> str:
    if error.type_name.endswith(NUMPY_ARRAY):
        return f"{path} is a state of an earlier version, which kept NumPy arrays in it; they are not read any more"
    return str(error)
