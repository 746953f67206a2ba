"""Files out of Debian packages: a list that names them, the download, the extraction.

A list has one file a line, `package:path/inside/the/package WIDTHxHEIGHT`, and if it wants a weight after it (how often
the picture is drawn in training, 1 being usual); `#` starts a comment line. A path may go on inside an archive
(`archives.py`): of an `.edj` file its first picture is meant, of an `.rcc` file the one that the path names.
"""
from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils.errors import UserError
from utils.files import replacing

from .archives import EET, contents, split_archive

log = logging.getLogger(__name__)

LINE = re.compile(r"(?P<package>[a-z0-9][a-z0-9+.-]+):(?P<path>\S.*\S)\s+(?P<width>\d+)x(?P<height>\d+)"
                  r"(?:\s+(?P<weight>\d*\.?\d+))?")


class SourceError(UserError):
    """A package cannot be had or does not hold what the list says; the message says what to do."""


@dataclass(frozen=True)
class PackagedPhoto:
    """A photograph inside a Debian package; width and height in pixels; weight: how often it is drawn."""

    package: str
    path: str
    width: int
    height: int
    weight: float = 1.0

    @property
    def name(self) -> str:
        """File name without its folders."""
        return PurePosixPath(self.path).name

    @property
    def local_path(self) -> PurePosixPath:
        """Where the photograph is put, relative to an output folder: unique, and telling where it is from."""
        path = PurePosixPath(self.path)
        parts = (path.with_suffix(".jpg") if path.suffix == EET else path).parts
        return PurePosixPath(self.package, *(parts[2:] if parts[:2] == ("usr", "share") else parts))


def read_photo_list(path: str | os.PathLike) -> list[PackagedPhoto]:
    """Parse a list. Raises ValueError with the line number for a malformed line or a path that leaves its folder."""
    photos = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None or ".." in PurePosixPath(match["path"]).parts or match["path"].startswith("/"):
            raise UserError(f"{path}, line {number}: expected `package:relative/path WIDTHxHEIGHT [WEIGHT]`, got "
                             f"{line!r}")
        photos.append(PackagedPhoto(match["package"], match["path"], int(match["width"]), int(match["height"]),
                                    float(match["weight"] or 1)))
    return photos


def read_names(path: str | os.PathLike) -> frozenset[str]:
    """File names, one a line, `#` starts a comment line."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line and not line.startswith("#"))


def find_deb(package: str, folder: str | os.PathLike) -> Path | None:
    """The package's `.deb` file in a folder, the last one by name if there are several."""
    return max(Path(folder).glob(f"{package}_*.deb"), default=None)


def download_deb(package: str, folder: str | os.PathLike) -> Path:
    """Fetch a package into a folder with `apt-get download` (no root needed); a file already there is kept.

    Raises SourceError when apt-get is missing or fails.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    present = find_deb(package, folder)
    if present is not None:
        return present
    by_hand = (f"or download {package} as a .deb by hand (https://packages.debian.org/{package}) "
               "and give its folder with --debs")
    if shutil.which("apt-get") is None:
        raise SourceError(f"apt-get not found: run this on Debian or Ubuntu, {by_hand}")
    log.info("downloading %s", package)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as unfinished:  # apt gives parts the final name
        result = subprocess.run(["apt-get", "download", package], cwd=unfinished, capture_output=True, text=True)
        deb = find_deb(package, unfinished)
        if result.returncode or deb is None:
            reason = (result.stderr.strip().splitlines() or ["no file arrived"])[-1]
            raise SourceError(f"apt-get download {package} failed ({reason}): try `apt-get update` first, {by_hand}")
        return deb.replace(folder / deb.name)


def extract(deb: str | os.PathLike, targets: Mapping[str, Path]) -> set[str]:
    """Copy single files out of a package: `targets` maps paths inside it, and inside archives in it, to where they go
    (written atomically).

    Returns the paths that were found. Raises SourceError when dpkg-deb is missing or the package is damaged.
    """
    if shutil.which("dpkg-deb") is None:
        raise SourceError("dpkg-deb not found: install `dpkg` (Debian, Ubuntu, Homebrew and others have it)")
    found = set()
    inside: dict[str, dict[str, str]] = {}  # of archives: what is wanted of them, and its whole path
    for target in targets:
        archive_path, name = split_archive(target)
        inside.setdefault(archive_path, {})[name] = target
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    if path not in inside or not member.isfile():
                        continue
                    for name, content in contents(path, archive.extractfile(member), inside[path]):
                        with replacing(targets[inside[path][name]]) as temporary, temporary.open("wb") as file:
                            shutil.copyfileobj(content, file)
                        found.add(inside[path][name])
                process.stdout.read()  # to the end, so that dpkg-deb can finish and report its exit code
        except (tarfile.TarError, ValueError) as error:
            process.kill()
            raise SourceError(f"{deb} is damaged ({error}): delete it and download it again") from error
        if process.wait():
            reason = process.stderr.read().decode(errors="replace").strip()
            raise SourceError(f"{deb} is damaged ({reason}): delete it and download it again")
    return found


def by_package(photos: Iterable[PackagedPhoto]) -> dict[str, list[PackagedPhoto]]:
    """Photographs grouped by package, in order."""
    groups: dict[str, list[PackagedPhoto]] = {}
    for photo in photos:
        groups.setdefault(photo.package, []).append(photo)
    return groups
