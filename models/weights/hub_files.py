"""Files of a hub repository, fetched into a plain folder and verified against the hub's own sizes and hashes.

The list of files with their hashes is kept beside them, so that they can be verified again without a network.

A hub may be a mirror of anybody's: what it says of a file is checked before a path is made of it, and what it sends is
no more than it said.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from utils.errors import first_line, visible
from utils.files import MAX_NAME, no_links, replacing

LIST_FILE = ".published.json"
PARTIAL_FOLDER = ".part"  # beside the files, for downloads that are not whole
DIGITS = 12  # of the hash in a partial file's name: another version is another file
BLOCK = 1 << 22
MAX_FILES = 10_000  # of a repository
MAX_LIST = 2 ** 24  # bytes of the kept list
FOREIGN = re.compile(r'[\\:*?"<>|]')  # what other systems read as drives, folders and patterns
SHA256, SHA1 = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")
Advance = Callable[[int], None]  # called with the number of bytes just read


class HubError(OSError):
    """The hub cannot be asked, or a file is not what it should be; one line with the file and the remedy."""

    def __init__(self, text: str) -> None:
        super().__init__(visible(text))


@dataclass(frozen=True)
class HubFile:
    """One file as the hub describes it. Large files have a SHA-256, small ones git's SHA-1.

    Raises HubError for a path that leads out of the folder or to what is kept there, sizes and hashes that are none.
    """

    path: str
    size: int
    sha256: str | None
    git_sha1: str

    def __post_init__(self) -> None:
        if not _is_below(self.path):
            raise HubError(f"the hub names a file {_shown(self.path)}, which is no name of a file below a folder: use "
                           "another hub or revision")
        if type(self.size) is not int or self.size < 0:
            raise HubError(f"{self.path}: its size is given as {_shown(self.size)}, which is none")
        for kind, digest in ((SHA256, self.sha256), (SHA1, self.git_sha1)):
            optional = kind is SHA256
            if not (digest is None and optional or isinstance(digest, str) and kind.fullmatch(digest)):
                raise HubError(f"{self.path}: its hash is given as {_shown(digest)}, which is none")

    @property
    def digest(self) -> str:
        """The hash that counts, with its kind."""
        return f"sha256 {self.sha256}" if self.sha256 else f"git sha1 {self.git_sha1}"


def _is_below(name: object) -> bool:
    """Whether a file of this name lies below the folder that it is put into, on every system, and is none of ours."""
    parts = name.split("/") if isinstance(name, str) else [""]
    return parts[0] not in (LIST_FILE, PARTIAL_FOLDER) and all(
        part not in ("", ".", "..") and part.isprintable() and not FOREIGN.search(part)
        and len(os.fsencode(part)) <= MAX_NAME for part in parts)


def _shown(value: object) -> str:
    return repr(value)[:MAX_NAME]


def list_files(repo: str, patterns: Sequence[str], revision: str | None = None,
               endpoint: str | None = None) -> list[HubFile]:
    """Files of a repository on the hub that match one of the patterns. Raises HubError."""
    import huggingface_hub
    from huggingface_hub.hf_api import RepoFile
    try:
        listed = huggingface_hub.HfApi(endpoint=endpoint).list_repo_tree(repo, recursive=True, revision=revision)
        entries = list(islice(listed, MAX_FILES + 1))
    except Exception as error:  # a bad name, refusals, the network: their types depend on the client's version
        raise HubError(f"{repo}: the hub cannot be asked ({first_line(error)}): check the name and the network, or "
                       "verify what is here with --offline") from error
    if len(entries) > MAX_FILES:
        raise HubError(f"{repo}: the hub lists more than {MAX_FILES} files")
    files = [HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
             for entry in entries if isinstance(entry, RepoFile) and _fits(entry.path, patterns)]
    return sorted(files, key=lambda file: file.path)


def _fits(name: object, patterns: Sequence[str]) -> bool:
    return any(fnmatch(str(name), pattern) for pattern in patterns)


def remember(folder: Path, repo: str, files: Sequence[HubFile]) -> None:
    """Keep a repository's list of files beside them; lists of other repositories stay."""
    known = _known(folder)
    kept = {file.path: asdict(file) for file in (*_files(folder, known.get(repo, [])), *files)}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / LIST_FILE) as temporary:
        temporary.write_text(json.dumps({**known, repo: list(kept.values())}, indent=1) + "\n", encoding="utf-8")


def remembered(folder: Path, repo: str, patterns: Sequence[str]) -> list[HubFile]:
    """The kept list of a repository's files. Raises HubError where there is none."""
    files = _files(folder, _known(folder).get(repo, []))
    if not files:
        raise HubError(f"{folder / LIST_FILE} does not know {repo}: run once with a network")
    return [file for file in files if _fits(file.path, patterns)]


def _known(folder: Path) -> dict[str, object]:
    """The kept lists, unchecked, by repository."""
    path = folder / LIST_FILE
    if not path.exists():
        return {}
    with path.open("rb") as file:
        content = file.read(MAX_LIST + 1)
    try:
        known = json.loads(content.decode("utf-8")) if len(content) <= MAX_LIST else None
    except (ValueError, RecursionError) as error:
        raise _damaged(folder) from error
    if not isinstance(known, dict):
        raise _damaged(folder)
    return known


def _files(folder: Path, kept: object) -> list[HubFile]:
    """The files of a kept list. Raises HubError."""
    try:
        return [HubFile(**file) for file in kept]
    except HubError as error:
        raise HubError(f"{folder / LIST_FILE}: {error}") from error
    except TypeError as error:
        raise _damaged(folder) from error


def _damaged(folder: Path) -> HubError:
    return HubError(f"{folder / LIST_FILE} is damaged: delete it and run again with a network")


def fault(path: Path, file: HubFile, advance: Advance | None = None) -> str | None:
    """What is wrong with a local file, in words; None if it is the published one byte for byte."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != file.size:
        return f"has {size:,} bytes instead of {file.size:,}"
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
            if advance is not None:
                advance(len(block))
    expected = file.sha256 or file.git_sha1
    return None if digest.hexdigest() == expected else f"is damaged: its hash is not {file.digest}"


class _Bounded(io.BufferedWriter):
    """Takes no more bytes than a file has: a mirror may send without an end. What is longer already begins anew."""

    def __init__(self, file: io.FileIO, limit: int) -> None:
        super().__init__(file)
        self.limit = limit
        if self.tell() > limit:
            self.truncate(0)
            self.seek(0)

    def write(self, data: bytes, /) -> int:
        if self.tell() + len(data) > self.limit:
            raise OSError(f"the hub sends more than {self.limit:,} bytes")
        return super().write(data)


def fetch(repo: str, file: HubFile, folder: Path, revision: str | None = None, endpoint: str | None = None,
          advance: Advance | None = None) -> Path:
    """Download one file, verify it and put it in place of what is there. Raises HubError.

    Goes on where an earlier attempt stopped, also one of a process that was killed; the library's own download begins
    anew in every process.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers
    path, partial = folder / file.path, folder / PARTIAL_FOLDER / f"{Path(file.path).name}.{file.digest[-DIGITS:]}.part"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if partial.parent.is_symlink():
            raise OSError(f"{partial.parent} is a link")
        with _Bounded(io.FileIO(partial, "ab", opener=no_links), file.size) as opened:
            http_get(hf_hub_url(repo, file.path, revision=revision, endpoint=endpoint), opened,
                     resume_size=opened.tell(), headers=build_hf_headers(), expected_size=file.size,
                     displayed_filename=file.path)
    except Exception as error:  # as above
        raise HubError(f"{file.path} of {repo} could not be downloaded ({first_line(error)}): run again, the download "
                       "goes on where it stopped") from error
    wrong = fault(partial, file, advance)
    if wrong:
        partial.unlink()
        raise HubError(f"{file.path} of {repo} arrived damaged and was removed: run again")
    os.replace(partial, path)
    return path
