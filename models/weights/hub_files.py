"""Files of a hub repository, fetched into a plain folder and verified against the hub's own sizes and hashes.

The list of files with their hashes is kept beside them, so that they can be verified again without a network.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from utils.errors import first_line
from utils.files import replacing

LIST_FILE = ".published.json"
PARTIAL_FOLDER = ".part"  # beside the files, for downloads that are not whole
DIGITS = 12  # of the hash in a partial file's name: another version is another file
BLOCK = 1 << 22
Advance = Callable[[int], None]  # called with the number of bytes just read


class HubError(OSError):
    """The hub cannot be asked, or a file is not what it should be; one line with the file and the remedy."""


@dataclass(frozen=True)
class HubFile:
    """One file as the hub describes it. Large files have a SHA-256, small ones git's SHA-1."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str

    @property
    def digest(self) -> str:
        """The hash that counts, with its kind."""
        return f"sha256 {self.sha256}" if self.sha256 else f"git sha1 {self.git_sha1}"


def list_files(repo: str, patterns: Sequence[str], revision: str | None = None,
               endpoint: str | None = None) -> list[HubFile]:
    """Files of a repository on the hub that match one of the patterns. Raises HubError."""
    import huggingface_hub
    from huggingface_hub.hf_api import RepoFile
    try:
        entries = list(huggingface_hub.HfApi(endpoint=endpoint).list_repo_tree(repo, recursive=True,
                                                                               revision=revision))
    except Exception as error:  # a bad name, refusals, the network: their types depend on the client's version
        raise HubError(f"{repo}: the hub cannot be asked ({first_line(error)}): check the name and the network, or "
                       "verify what is here with --offline") from error
    files = [HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
             for entry in entries if isinstance(entry, RepoFile)]
    return sorted((file for file in files if any(fnmatch(file.path, pattern) for pattern in patterns)),
                  key=lambda file: file.path)


def remember(folder: Path, repo: str, files: Sequence[HubFile]) -> None:
    """Keep a repository's list of files beside them; lists of other repositories stay."""
    known = _known(folder)
    kept = {file["path"]: file for file in known.get(repo, [])} | {file.path: asdict(file) for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / LIST_FILE) as temporary:
        temporary.write_text(json.dumps({**known, repo: list(kept.values())}, indent=1) + "\n", encoding="utf-8")


def remembered(folder: Path, repo: str, patterns: Sequence[str]) -> list[HubFile]:
    """The kept list of a repository's files. Raises HubError where there is none."""
    files = [HubFile(**file) for file in _known(folder).get(repo, [])]
    if not files:
        raise HubError(f"{folder / LIST_FILE} does not know {repo}: run once with a network")
    return [file for file in files if any(fnmatch(file.path, pattern) for pattern in patterns)]


def _known(folder: Path) -> dict[str, list[dict[str, object]]]:
    path = folder / LIST_FILE
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{path} is damaged: delete it and run again with a network") from error


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
        with open(partial, "ab") as opened:
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
