"""Assemble the training photographs: `python -m dataloader.assemble.photos --output trainset/photos`.

The photographs come from Debian packages (photos.txt lists them); the ones that the sample set is cut from
(held_out.txt) are left out, and with `--held_out` fetched alone. Next to each package's photographs lies its copyright
file, which names authors and licences. OUTPUT/list.txt names what was assembled with the lists' weights: `--data` takes
it like a folder. All photographs that the embedded model is trained on, 1.3 GB to download:

    python -m dataloader.assemble.photos --list dataloader/assemble/photos.txt dataloader/assemble/photos_more.txt \\
        dataloader/assemble/textures.txt
"""
from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pictures.formats import ImageError
from pictures.picture import read_header
from utils.errors import guarded
from utils.files import replacing

from .sources import (
    PackagedPhoto,
    SourceError,
    by_package,
    download_deb,
    extract,
    find_deb,
    read_names,
    read_photo_list,
)

log = logging.getLogger(__name__)

PHOTO_LIST = Path(__file__).with_name("photos.txt")
WEIGHTED_LIST = "list.txt"
OUTPUT, HELD_OUT_OUTPUT = Path("trainset/photos"), Path("trainset_held_out")
HELD_OUT = Path(__file__).with_name("held_out.txt")


@dataclass
class Assembly:
    """What `assemble` did: counts, and one line for each photograph or package that failed."""

    written: int = 0
    present: int = 0
    held_out: int = 0
    problems: list[str] = field(default_factory=list)


def has_size(photo: PackagedPhoto, file: Path) -> bool:
    """Whether `file` is a picture of the listed size (by its header)."""
    try:
        header = read_header(file)
    except ImageError:
        return False
    return {header.width, header.height} == {photo.width, photo.height}  # listed as stored, whichever way it lies


def copyright_path(package: str) -> str:
    """Where a Debian package keeps its licences."""
    return f"usr/share/doc/{package}/copyright"


def assemble(photos: Iterable[PackagedPhoto], output: Path, *, held_out: frozenset[str] = frozenset(),
             debs: Path | None = None, downloads: Path | None = None) -> Assembly:
    """Put the photographs below `output`; those that already lie there in the right size are kept.

    debs: folder of packages that were downloaded before; nothing is fetched then. downloads: where packages are
    fetched to (default: `.debs` below `output`); they may be deleted afterwards. Failures are collected, not raised.
    """
    result = Assembly()
    photos = list(photos)
    selected = [photo for photo in photos if photo.name not in held_out]
    result.held_out = len(photos) - len(selected)
    for package, members in by_package(selected).items():
        missing = [photo for photo in members if not has_size(photo, output / photo.local_path)]
        result.present += len(members) - len(missing)
        if not missing:
            continue
        try:
            written = _fetch(package, missing, output, debs, downloads or output / ".debs")
        except SourceError as error:
            result.problems.append(f"{package}: {error}")
            continue
        for photo in missing:
            if photo.path not in written:
                result.problems.append(f"{package} does not hold {photo.path}: another release of the package?")
            elif not has_size(photo, output / photo.local_path):
                (output / photo.local_path).unlink()
                result.problems.append(f"{package}: {photo.path} is not a picture of {photo.width}x{photo.height}: "
                                       "another release of the package?")
            else:
                result.written += 1
    return result


def _fetch(package: str, photos: list[PackagedPhoto], output: Path, debs: Path | None, downloads: Path) -> set[str]:
    """Extract photographs and copyright file of one package; the paths found."""
    if debs is None:
        deb = download_deb(package, downloads)
    else:
        deb = find_deb(package, debs)
        if deb is None:
            raise SourceError(f"no {package}_*.deb in {debs}")
    targets = {photo.path: output / photo.local_path for photo in photos}
    targets[copyright_path(package)] = output / package / "copyright"
    return extract(deb, targets)


def write_weighted_list(photos: Iterable[PackagedPhoto], folder: Path, left_out: frozenset[str] = frozenset()) -> None:
    """The listed photographs that lie below `folder`, as `path, weight` lines in its `list.txt`, behind those that
    earlier runs listed and that are still there. left_out: names of photographs that are in no such list."""
    listed = {path: weight for path, weight in _listed(folder).items() if Path(path).name not in left_out}
    listed |= {str(photo.local_path): f"{photo.weight:g}" for photo in photos if photo.name not in left_out}
    lines = [f"{path}, {weight}\n" for path, weight in listed.items() if (folder / path).is_file()]
    with replacing(folder / WEIGHTED_LIST) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _listed(folder: Path) -> dict[str, str]:
    """Weights by path in the folder's `list.txt`."""
    try:
        lines = (folder / WEIGHTED_LIST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {path: weight.strip() for path, _, weight in (line.rpartition(",") for line in lines) if path}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help=f"folder for the photographs ({OUTPUT}; of those that are held "
                                                    f"out {HELD_OUT_OUTPUT})")
    parser.add_argument("--held_out", action="store_true", help="those that training leaves out, and no others")
    parser.add_argument("--debs", type=Path, help="folder of downloaded .deb files, used instead of apt-get")
    parser.add_argument("--list", type=Path, nargs="+", default=[PHOTO_LIST], help="lists of photographs")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, assemble, report; 1 when anything is missing."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        photos = [photo for path in args.list for photo in read_photo_list(path)]
    except (OSError, ValueError) as error:
        print(f"photos: {error}", file=sys.stderr)
        return 1
    names, output = read_names(HELD_OUT), args.output or (HELD_OUT_OUTPUT if args.held_out else OUTPUT)
    if args.held_out:
        if others := [path for path in _listed(output) if Path(path).name not in names]:
            print(f"photos: {output} holds photographs that are trained on ({others[0]}): choose another --output for "
                  "those that are held out", file=sys.stderr)
            return 1
        photos, names = [photo for photo in photos if photo.name in names], frozenset()
    result = assemble(photos, output, held_out=names, debs=args.debs)
    if result.written or result.present:
        write_weighted_list(photos, output, names)
    for problem in result.problems:
        print(f"photos: {problem}", file=sys.stderr)
    print(f"{result.written} photographs written to {output}, {result.present} were there, "
          f"{result.held_out} held out, {len(result.problems)} problems")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(guarded("photos", main))
