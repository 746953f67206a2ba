"""The process that reads the inputs of a fuzz run: `python -m tests.security.fuzz_worker`.

It imports the readers once, takes lines `reader<TAB>path` and answers each with one line of JSON
(`fuzz_process.Answer`).
What it dies of, and how long it takes, is for the process that started it to see.
"""
from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from dataloader.entries import find_entries, read_entry
from models.config import ConfigError, VARSRConfig
from models.varsr import VARSR
from models.weights.hub_files import HubError, remembered
from models.weights.load import load_loose, load_pretrained, load_vqvae
from models.weights.tokenizer_file import load_tokenizer
from models.weights.unpickle import CheckpointError
from pictures.formats import ImageError
from pictures.picture import Picture, read_header, read_picture, software_of
from pictures.result_file import ResultFile, ResultOptions
from tests.memory import memory, peak, reset_peak
from training.states import StateFolder
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MAX_PIXELS = 2 ** 24  # that are read: a larger picture is refused, as a user's `--max_pixels` refuses it
ROOM = 3 * 2 ** 30  # bytes of address space that an input may take: a bomb must not take the machine
WRITTEN_SHARE, WRITTEN_PIXELS = 10, 2 ** 18  # one of so many pictures, and no larger one, is written again
WRITTEN_KINDS = (".png", ".jpg", ".webp", ".tif")
ENTRIES, FRAMES = 4, 2  # of a list or shard, and of an animation, that are read
FRAMES_TOLD = 6  # of a traceback
TEXT = (("Software", "VARSR"), ("VARSR", "model=tiny; seed=7"))


def _size_of(picture: Picture) -> int:
    return picture.color.nbytes + (picture.alpha.nbytes if picture.alpha is not None else 0)


def _write_again(path: Path, picture: Picture, suffix: str) -> None:
    """Write a picture as a result: the writers read hostile metadata too."""
    result = ResultFile(path.with_name(f"result-of-{path.name}{suffix}"), picture, picture.height, picture.width,
                        ResultOptions(text=TEXT))
    result.write_rows(0, picture.region(0, 0, picture.height, picture.width))
    result.finish()


def read_one_picture(path: Path) -> int:
    """Header, program and picture of a file, its second frame too; the bytes of the largest picture."""
    software_of(path)
    error: ImageError | None = None
    frames = 1
    try:
        frames = read_header(path).frames
    except ImageError as refused:  # the pixels are tried in any case
        error = refused
    size = 0
    for frame in range(min(frames, FRAMES)):
        picture = read_picture(path, MAX_PIXELS, frame)
        size = max(size, _size_of(picture))
        chosen = zlib.crc32(path.read_bytes())
        if frame == 0 and chosen % WRITTEN_SHARE == 0 and picture.height * picture.width <= WRITTEN_PIXELS:
            _write_again(path, picture, WRITTEN_KINDS[chosen // WRITTEN_SHARE % len(WRITTEN_KINDS)])
    if error is not None:
        raise error
    return size


def read_and_write(path: Path) -> int:
    """A picture, which is written again as every kind that holds metadata."""
    picture = read_picture(path, MAX_PIXELS)
    for suffix in WRITTEN_KINDS:
        _write_again(path, picture, suffix)
    return _size_of(picture)


def read_list(path: Path) -> int:
    """The first pictures of a shard or text list."""
    size, error = 0, None
    for entry in islice(find_entries(path), ENTRIES):
        try:
            width, height = read_entry(entry).size
            size = max(size, 3 * width * height)
        except (ImageError, OSError) as refused:
            error = refused
    if error is not None and not size:
        raise error
    return size


def _size(tensors: Iterable[object]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if isinstance(tensor, Tensor))


def read_model(path: Path) -> int:
    """A model as the programs load it, and as a training starts from it."""
    size = _size(load_loose(path).tensors.values())
    config, tensors = load_pretrained(path)
    size += _size(tensors.values())
    VARSR.from_tensors(config, tensors, torch.float32, "cpu")
    return 2 * size


def read_vqvae(path: Path) -> int:
    """A tokenizer of its own."""
    read = load_tokenizer if path.suffix == ".safetensors" else load_vqvae
    return 2 * _size(read(path).state_dict().values())


def read_config(path: Path) -> int:
    """The text of a model's configuration."""
    VARSRConfig.load(path)
    return 0


def read_states(path: Path) -> int:
    """The newest state in the folder of a file, and which one was the best."""
    states = StateFolder(path.parent)
    states.is_best(0.5)
    state = states.load_newest()
    if state is not None and not isinstance(state, dict):
        raise TypeError(f"a state is a {type(state).__name__}")
    return _size(state.values()) if state else 0


def read_hub_list(path: Path) -> int:
    """The kept list of a repository's files."""
    remembered(path.parent, "owner/name", ["*"])
    return 0


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read, the errors that may end it, and whether these have to name the file."""

    read: Callable[[Path], int]
    errors: tuple[type[Exception], ...]
    names_file: bool = True


READERS = {
    "picture": Reader(read_one_picture, (ImageError,)),
    "result": Reader(read_and_write, (ImageError,)),
    "list": Reader(read_list, (UserError, OSError)),
    "model": Reader(read_model, (CheckpointError, FileNotFoundError)),
    "vqvae": Reader(read_vqvae, (CheckpointError, FileNotFoundError)),
    "config": Reader(read_config, (ConfigError,), names_file=False),
    "states": Reader(read_states, (CheckpointError,)),
    "hub_list": Reader(read_hub_list, (HubError,)),
}


class _Formatted(logging.Handler):
    """Every line that is logged is formatted, as a program would; one that cannot be is an error."""

    def handle(self, record: logging.LogRecord) -> bool:
        self.format(record)
        return True


def _complaint(message: str, path: Path, names_file: bool) -> str | None:
    """What is wrong with an error's text; None if it is one line that names the file or its folder."""
    if len(message.splitlines()) != 1:
        return "the error is not one line"
    names = {path.parent.name, *(file.name for file in path.parent.iterdir())}
    if names_file and not any(name in message for name in names):
        return "the error does not name the file"
    return None


def answer(reader: Reader, path: Path) -> dict[str, object]:
    """Read a file; what came of it."""
    told: dict[str, object] = {"outcome": "ok", "text": "", "frames": [], "picture": 0}
    before, started = reset_peak(), time.process_time()
    try:
        told["picture"] = reader.read(path)
    except reader.errors as error:
        complaint = _complaint(str(error), path, reader.names_file)
        told.update(outcome="raised" if complaint else "refused", text=f"{complaint}: {error}" if complaint else
                    f"{type(error).__name__}: {error}", frames=_frames(error) if complaint else [])
    except BaseException as error:  # whatever it is, it is what the run is made to find
        told.update(outcome="raised", text=f"{type(error).__name__}: {error}", frames=_frames(error))
    told.update(seconds=time.process_time() - started, peak=max(peak() - before, 0))
    return told


def _frames(error: BaseException) -> list[str]:
    """Where an error came from, the deepest frame first: the last few, and those of our own files."""
    found = traceback.extract_tb(error.__traceback__)[::-1]
    return [f"{frame.filename.removeprefix(f'{ROOT}/')}:{frame.lineno} in {frame.name}"
            for place, frame in enumerate(found) if place < FRAMES_TOLD or frame.filename.startswith(f"{ROOT}/")]


def main() -> None:
    """Answer lines until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.basicConfig(handlers=[_Formatted()], level=logging.DEBUG)
    torch.set_num_threads(1)
    limit = memory("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        name, _, path = line.rstrip("\n").partition("\t")
        print(json.dumps(answer(READERS[name], Path(path))), file=answers, flush=True)


if __name__ == "__main__":
    main()
