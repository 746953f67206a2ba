"""Files that appear whole or not at all."""
from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

MAX_NAME = 255  # bytes of a file name, on the file systems that people have
MAX_SUFFIX = 12  # bytes; more is no kind of file, just a dot in a name
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # with any number of quotes
DIGEST = 16  # hexadecimal digits that stand for the rest of a long name
PRIVATE = 0o700  # permissions of a folder
READ_AND_WRITE = 0o666  # permissions of a new file, of which the umask takes some away
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor pipes, at which to wait; Windows has none

BINARY = getattr(os, "O_BINARY", 0)  # Windows alone turns ends of lines around without it
POSITION = threading.Lock()  # of files, which threads share where there is no pread


def no_links(path: str | os.PathLike, flags: int) -> int:
    """An opener for `open`: a link in place of the file is an OSError. In a folder that others may write into, it could
    lead to any file of ours."""
    return os.open(path, flags | NO_LINKS | BINARY, READ_AND_WRITE)


def create(path: Path) -> int:
    """The descriptor of a new file, to read and to write. Raises FileExistsError where something has the name, be it a
    link that leads nowhere."""
    return no_links(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def read_at(file: int, count: int, place: int) -> bytes:
    """Up to `count` bytes of an open file from a place on: os.pread, which Windows lacks. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(file, count, place)
    with POSITION:
        os.lseek(file, place, os.SEEK_SET)
        return os.read(file, count)


def write_at(file: int, data: bytes | memoryview, place: int) -> int:
    """Write into an open file from a place on, and return how many bytes it took: os.pwrite, which Windows lacks.
    Raises OSError."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, place)
    with POSITION:
        os.lseek(file, place, os.SEEK_SET)
        return os.write(file, data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, whose folder is made if need be: it takes the place of `path` when the block
    ends well, and vanishes when it does not. It keeps the suffix, and several processes may write one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    os.close(create(temporary))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def private_folder(path: Path) -> bool:
    """Make a folder that is open to its user alone, or make one that is there so. Returns whether nobody else could
    have written into it. Raises UserError where something has its name that is no folder of this user's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(PRIVATE)
        return True
    found = path.lstat()
    own = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    if not stat.S_ISDIR(found.st_mode) or not own:
        raise UserError(f"{path}: a link, a file or somebody else's folder has this name: remove it, or choose another "
                        "folder")
    if not hasattr(os, "geteuid") or stat.S_IMODE(found.st_mode) == PRIVATE:
        return True
    path.chmod(PRIVATE)
    return False


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


def cell(text: str) -> str:
    """A text as a cell of a table: with a quote before what a spreadsheet would take for a formula, and before what
    looks as if it had got one here."""
    return f"'{text}" if FORMULA.match(text) else text


def text_of_cell(text: str) -> str:
    """The inverse of `cell`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text[1:]) else text


def name_beside(path: Path, ending: str) -> Path:
    """`.NAMEending` in the folder of `path`, always the same; of a name that would become too long the beginning."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > MAX_NAME:
        raw = os.fsencode(path.name)
        ending = f"-{hashlib.sha256(raw).hexdigest()[:DIGEST]}{ending}"
        name = os.fsdecode(b"." + raw[:MAX_NAME - 1 - len(ending)]) + ending
    return path.with_name(name)
