"""Where a training writes what it learns: JSON lines and TensorBoard always, Weights & Biases on request.

Nothing here needs a network, and a log that cannot be written never stops a training: it is given up with one line.
"""
from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pictures.formats import ImageError
from pictures.rgb import read_image, to_pillow
from utils.errors import UserError, first_line
from utils.files import replacing

log = logging.getLogger(__name__)

JSON_FILE, TENSORBOARD_FOLDER, WANDB_ID_FILE = "log.jsonl", "tensorboard", "wandb_id.txt"
START = "start"  # the event that carries a run's settings and the iteration it goes on from
FLUSH_SECONDS = 30
ID_BYTES = 4


@contextmanager
def spared(what: str, folder: Path) -> Iterator[None]:
    """A file that cannot be written costs itself, not the training."""
    try:
        yield
    except (OSError, ImageError) as error:
        log.error("%s cannot be saved (%s): make room in %s. Training goes on, what was saved before is whole",
                  what, error, folder)


class LogError(UserError):
    """A log that was asked for cannot be had; the message says what to do."""


@dataclass(frozen=True)
class WandBSettings:
    """Name of a Weights & Biases run. Whether it goes online is its own business (WANDB_MODE, `wandb offline`)."""

    name: str
    project: str = "VARSR"


class Sink(Protocol):
    """One place that a log is written to."""

    def write(self, event: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Record the values of an event ("start", "train", "report") after `iteration` iterations."""

    def picture(self, name: str, iteration: int, path: Path) -> None:
        """Record a picture file."""

    def close(self) -> None:
        """Write out what is left."""


class JsonLines:
    """Append-only log, one JSON object a line; `null` stands for non-finite numbers."""

    def __init__(self, path: Path) -> None:
        """A last line that a killed run or a full disk left unfinished is taken away."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)

    def write(self, event: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Append one line."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "iteration": iteration, **clean}) + "\n")

    def picture(self, name: str, iteration: int, path: Path) -> None:
        """Pictures are files already."""

    def close(self) -> None:
        """Every line is on disk already."""


class TensorBoard:
    """Event files of `torch.utils.tensorboard`, begun with the start of the run."""

    def __init__(self, folder: Path) -> None:
        """Raises ImportError where the package is missing."""
        from torch.utils.tensorboard import SummaryWriter
        self.folder, self._open, self.writer = folder, SummaryWriter, None

    def write(self, event: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Numbers as scalars EVENT/NAME; the start as text. What an earlier run wrote beyond it is hidden."""
        if event == START or self.writer is None:
            self.close()
            self.writer = self._open(str(self.folder), purge_step=iteration + 1, flush_secs=FLUSH_SECONDS)
        if event == START:
            self.writer.add_text(START, "\n".join(f"    {name}: {value}" for name, value in values.items()), iteration)
            return
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(f"{event}/{name}", value, iteration)

    def picture(self, name: str, iteration: int, path: Path) -> None:
        """A picture file's pixels."""
        if self.writer is not None:
            self.writer.add_image(name, np.asarray(to_pillow(read_image(path))), iteration, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class WandB:
    """A Weights & Biases run, which a resumed training continues: its id is kept in the output folder."""

    def __init__(self, folder: Path, settings: WandBSettings, start_over: bool = False) -> None:
        """start_over: as a new run. Raises LogError where the package is missing or the run cannot begin."""
        try:
            import wandb
        except ImportError as error:
            raise LogError("--wandb_flag needs the wandb package: `pip install wandb`, or leave the flag out"
                           ) from error
        folder.mkdir(parents=True, exist_ok=True)
        if start_over:
            (folder / WANDB_ID_FILE).unlink(missing_ok=True)
        self._image = wandb.Image
        try:
            self.run = wandb.init(project=settings.project, name=settings.name, dir=str(folder),
                                  id=self._run_id(folder / WANDB_ID_FILE), resume="allow")
        except Exception as error:  # no login, no network, a full disk: wandb has an own exception for each
            reason = first_line(error)
            raise LogError(f"wandb cannot begin a run ({reason}): `wandb login`, or WANDB_MODE=offline to log to disk"
                           ) from error

    @staticmethod
    def _run_id(path: Path) -> str:
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(secrets.token_hex(ID_BYTES) + "\n", encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()

    def write(self, event: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Numbers as EVENT/NAME; the start as the run's configuration."""
        if event == START:
            self.run.config.update(dict(values), allow_val_change=True)
            return
        self.run.log({f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))},
                     step=iteration)

    def picture(self, name: str, iteration: int, path: Path) -> None:
        """A picture file."""
        self.run.log({name: self._image(str(path))}, step=iteration)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class TrainingLog:
    """Writes to several sinks; one that fails is dropped with one line, the others go on."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def write(self, event: str, iteration: int, **values: Any) -> None:
        """Record numbers, or at the "start" the settings, after `iteration` iterations."""
        self._each(lambda sink: sink.write(event, iteration, values))

    def picture(self, name: str, iteration: int, path: Path) -> None:
        """Record a picture file; one that is not there is passed over."""
        if path.is_file():
            self._each(lambda sink: sink.picture(name, iteration, path))

    def close(self) -> None:
        """Write out what is left."""
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                call(sink)
            except (OSError, RuntimeError) as error:
                self.sinks.remove(sink)
                log.warning("%s is given up (%s), the training goes on", type(sink).__name__, error)


def open_log(folder: Path, wandb: WandBSettings | None = None, start_over: bool = False) -> TrainingLog:
    """The log of a run in its output folder. start_over: not that of the earlier run there. Raises LogError where a
    wandb run that was asked for cannot begin."""
    sinks: list[Sink] = [JsonLines(folder / JSON_FILE)]
    try:
        sinks.append(TensorBoard(folder / TENSORBOARD_FOLDER))
    except ImportError as error:
        log.warning("no TensorBoard log (%s): `pip install tensorboard` for one", error)
    if wandb is not None:
        sinks.append(WandB(folder, wandb, start_over))
    return TrainingLog(sinks)
