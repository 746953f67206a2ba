"""Files that appear whole or not at all."""
from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

MAX_NAME = 255  # bytes of a file name, on the file systems that people have
MAX_SUFFIX = 12  # bytes; more is no kind of file, just a dot in a name
DIGEST = 16  # hexadecimal digits that stand for the rest of a long name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made if need be: it takes the place of `path` when the block ends
    well, and vanishes when it does not. It keeps the suffix, and several processes may write one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_folder(flag: str, folder: Path) -> None:
    """Raise UserError where a flag names a folder that cannot be made or written into; nothing is made yet."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise UserError(f"{flag} {folder}: {nearest} is a file, results need a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: no permission to write into {nearest}")


def temporary_beside(path: Path) -> Path:
    """A hidden name of this process alone in the folder of `path`, short whatever the name of that; with its suffix."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= MAX_SUFFIX else ""
    return path.with_name(f".part-{secrets.token_hex(6)}{suffix}")


def name_beside(path: Path, ending: str) -> Path:
    """`.NAMEending` in the folder of `path`, always the same; of a name that would become too long the beginning."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > MAX_NAME:
        raw = os.fsencode(path.name)
        ending = f"-{hashlib.sha256(raw).hexdigest()[:DIGEST]}{ending}"
        name = os.fsdecode(b"." + raw[:MAX_NAME - 1 - len(ending)]) + ending
    return path.with_name(name)
