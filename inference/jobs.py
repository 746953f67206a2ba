"""Which pictures a script works on, and where their results go: every name is settled before the work begins."""
from __future__ import annotations

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pictures.file_writer import is_ours
from pictures.formats import (
    ERROR_MAP_ENDING,
    LR_FOLDER,
    NEEDED,
    RESULT_FOLDER,
    SUFFIXES,
    WRITABLE,
    ImageError,
    InputError,
    folders_below,
    matching_reference,
    pictures_in,
)
from pictures.picture import read_header, software_of
from pictures.rgb import MAX_SCALE, PictureSource, result_size
from utils.errors import UserError, visible
from utils.files import require_folder

from .tokens import is_token_file

AUTO = "auto"
# What `--ext auto` writes for a source of a kind; kinds that are not listed become PNG.
SAME_KIND = {"png": ".png", "jpg": ".jpg", "jpeg": ".jpg", "jfif": ".jpg", "jpe": ".jpg", "webp": ".webp",
             "tif": ".tif", "tiff": ".tif"}
EARLIER_RESULTS = "results of an earlier run"


@dataclass(frozen=True)
class Job:
    """One picture to restore. `reference` is its HR picture where there is one; frame: of an animation, from 0."""

    source: Path
    output: Path
    reference: Path | None = None
    frame: int | None = None

    @property
    def scales_folder(self) -> Path:
        """Where the picture after each scale goes, if it is asked for."""
        return self.output.with_name(f"{self.output.stem}_scales")

    @property
    def error_map(self) -> Path:
        """Where the map of expected errors goes, if it is asked for."""
        return self.output.with_name(f"{self.output.stem}{ERROR_MAP_ENDING}")

    @property
    def tokens(self) -> Path:
        """Where what the picture was drawn as goes, if it is asked for."""
        return self.output.with_name(f"{self.output.stem}_tokens.safetensors")


@dataclass
class Found:
    """Pictures, each with its folder below the one that was asked for, folders that could not be read, and how many
    files of which kind are left out."""

    pictures: list[tuple[Path, Path]] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class OutputNames:
    """How results are called: `suffix` goes behind the stem, `ext` is "auto" or a file ending without the dot."""

    suffix: str = ""
    ext: str = "png"

    def name(self, source: Path) -> str:
        """File name of a source's result."""
        ending = SAME_KIND.get(_kind(source), ".png") if self.ext == AUTO else f".{self.ext}"
        return f"{source.stem}{self.suffix}{ending}"


def _kind(source: Path) -> str:
    """What a file is, whatever it is called; of one that cannot be read, which is told later, what its name says."""
    try:
        return read_header(source).kind
    except ImageError:
        return source.suffix.lower().removeprefix(".")


def collect(pattern: str, recursive: bool = False, output: Path | None = None) -> Found:
    """Pictures of a file, a folder (with its sub-folders if `recursive`) or a glob pattern.

    output: a folder of results, which is not looked into. Raises InputError when there are none and nothing explains
    why, and for a pattern with `recursive`.
    """
    path = Path(pattern)
    if path.is_file():
        return Found([(path, Path())])
    if path.is_dir():
        found = _in_folder(path, recursive, output)
        if not found.pictures and not found.failures:
            raise InputError(f"--input {pattern}: no pictures in this folder (known: {' '.join(SUFFIXES)})"
                             + ("" if recursive else "; --recursive looks into its sub-folders")
                             + "".join(f"; {line}" for line in left_out_lines(found.left_out)))
        return found
    if recursive and any(sign in pattern for sign in "*?["):
        raise InputError(f"--recursive is for folders: name one with --input instead of {pattern}, or leave it out and "
                         "write ** for any folders within the pattern, as in photos/**/*.jpg")
    matching = _matching(pattern)
    # a file of an unknown ending is one that was meant only where nothing else matches
    known = [path for path in matching if path.suffix.lower() in SUFFIXES] or matching
    found = Found([(path, Path()) for path in known])
    found.left_out.update(path.suffix.lower() for path in matching if path not in known)
    if not found.pictures:
        raise InputError(f"--input {pattern}: no such file or folder, and no file matches it as a pattern")
    return found


def _matching(pattern: str) -> list[Path]:
    """The files that match. Folders that are called so are no patterns, whatever brackets they have in their names."""
    folder, parts = Path(), list(Path(pattern).parts)
    while len(parts) > 1 and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    found = glob.glob(os.path.join(glob.escape(str(folder)), *parts), recursive=True)
    return [path for path in map(Path, sorted(found)) if path.is_file()]


def _in_folder(folder: Path, recursive: bool, output: Path | None) -> Found:
    found = Found()

    def unreadable(error: OSError) -> None:
        found.failures[Path(error.filename)] = f"{error.filename}: the folder cannot be read ({error.strerror})"
    for parent, names in folders_below(folder, unreadable, recursive, output):
        for path in (parent / name for name in names):
            if path.suffix.lower() in SUFFIXES:
                found.pictures.append((path, parent.relative_to(folder)))
            else:
                found.left_out[path.suffix.lower()] += 1
    return found


def left_out_lines(left_out: Mapping[str, int]) -> list[str]:
    """One line for all files that were left out, by kind, with what would read them; none without any."""
    def reason(kind: str) -> str:
        if kind == EARLIER_RESULTS:
            return kind
        return f"{visible(kind) or 'without a suffix'}{f' (needs {NEEDED[kind]})' if kind in NEEDED else ''}"
    parts = [f"{count} {reason(kind)}" for kind, count in sorted(left_out.items())]
    return [f"left out: {', '.join(parts)}"] if parts else []


def jobs_for(pictures: Iterable[tuple[Path, Path]], output: Path, names: OutputNames | None = None) -> list[Job]:
    """Jobs for chosen pictures, results in `output` and the pictures' folders below it; `output` may be the one
    result's own file name. HR is looked for in the sister folder of `LR`.

    Raises InputError for a result of a kind that cannot be written, or where a file is in the folder's place.
    """
    names, pictures = names or OutputNames(), list(pictures)
    if _names_a_picture(output):
        if output.suffix.lower() not in WRITABLE:
            raise InputError(f"--output {output}: files of this kind cannot be written, {' '.join(WRITABLE)} can")
        if len(pictures) != 1:
            raise InputError(f"--output {output} names one file, but there are {len(pictures)} pictures: name a folder")
        return [Job(pictures[0][0], output, matching_reference(pictures[0][0]))]
    require_folder("--output", output)
    return [Job(source, output / below / names.name(source), matching_reference(source)) for source, below in pictures]


def _names_a_picture(path: Path) -> bool:
    suffix = path.suffix.lower()
    return not path.is_dir() and (suffix in SUFFIXES or suffix in Image.registered_extensions())


def settled(jobs: Iterable[Job], files: Mapping[str, Path | None] | None = None, scales: bool = False,
            overwrites: bool = True, tokens: bool = False, errors: bool = False, also_read: Iterable[Path | None] = ()
            ) -> tuple[list[Job], int]:
    """The jobs, checked once all names are known, without those whose source is another one's earlier result; and how
    many those are.

    files: what else will be written, by its flag. scales, tokens, errors: the pictures after each scale, the tokens,
    the maps of errors are written too. overwrites: results that are there are replaced. also_read: files that are read
    beside sources and HR pictures. Raises InputError where two things would get one name, a result that of a file
    beside the sources that is not a result of ours, tokens that of another file, or anything that of a file that is
    read.
    """
    jobs = list(jobs)
    earlier = _earlier_results(jobs, overwrites, errors, tokens)
    # what is no result of ours may be a picture of the same name that somebody wants restored too
    named = [job for job in jobs if job.source.resolve() not in earlier or not is_own_result(job.source)]
    taken = _require_different_names(named, files or {}, scales, tokens, errors)
    _require_others_stay(jobs, taken, files or {}, also_read)
    kept = [job for job in jobs if job.source.resolve() not in earlier]
    return kept, len(jobs) - len(kept)


def _require_different_names(jobs: list[Job], files: Mapping[str, Path | None], scales: bool, tokens: bool,
                             errors: bool) -> dict[Path, str]:
    """What the jobs write, each with what it belongs to."""
    taken: dict[Path, str] = {}
    alike: dict[str, Path] = {}
    for job in jobs:
        places = {job.output: str(job.source), **({job.scales_folder: f"the scales of {job.source}"} if scales else {}),
                  **({job.tokens: f"the tokens of {job.source}"} if tokens else {}),
                  **({job.error_map: f"the map of errors of {job.source}"} if errors else {})}
        if tokens and is_there(job.tokens) and not is_token_file(job.tokens):
            raise InputError(f"{job.source}: its tokens would overwrite {job.tokens}, which are no tokens of this "
                             "program: choose another --output, or a --suffix")
        for place, what in places.items():
            whole = place.absolute()
            twin = alike.setdefault(unicodedata.normalize("NFC", str(whole)).casefold(), whole)
            if twin != whole and not _is_one_file(twin, whole):
                twin = whole
            if (other := taken.get(twin)) is not None:
                raise InputError(f"{what} and {other} would both be written to {place}: rename one or process them "
                                 "apart")
            taken[whole] = what
    for flag, path in files.items():
        if path is not None and path.absolute() in taken:
            raise InputError(f"{flag} {path} is the result of {taken[path.absolute()]}: choose another name")
    return taken


def _is_one_file(first: Path, second: Path) -> bool:
    """Whether two absolute names that differ in case or Unicode form alone are one on their disk: it is tried out."""
    shared = Path(os.path.commonpath((first.parent, second.parent)))
    folder = next(each for each in (shared, *shared.parents) if each.is_dir())
    with suppress(OSError), TemporaryDirectory(prefix=".varsr-", dir=folder) as probe:
        made = Path(probe, first.relative_to(folder))
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()
        return is_there(Path(probe, second.relative_to(folder)))
    return False  # where nothing can be written, results cannot either


def _require_others_stay(jobs: list[Job], taken: Mapping[Path, str], files: Mapping[str, Path | None],
                         also_read: Iterable[Path | None]) -> None:
    """Nothing is written over an HR picture, nor a sheet or a log over anything that is read; results over sources are
    `_earlier_results`' matter."""
    originals = {_file(job.reference) for job in jobs if job.reference is not None} - {None}
    for place, what in taken.items():
        if _file(place) in originals:
            raise InputError(f"{what} would be written over the HR picture {place}: choose another --output, or a "
                             "--suffix")
    read = originals | {_file(path) for path in (*(job.source for job in jobs), *also_read) if path is not None}
    for flag, path in files.items():
        if path is not None and (file := _file(path)) is not None and file in read:
            raise InputError(f"{flag} {path} is a picture that is read: choose another name")


def _file(path: Path) -> tuple[int, int] | None:
    """Which file a name stands for; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _earlier_results(jobs: list[Job], overwrites: bool, errors: bool, tokens: bool) -> set[Path]:
    """Results and maps of errors that are there already, in folders that hold sources."""
    folders, earlier = {job.source.parent.resolve() for job in jobs}, set()
    for job in jobs:
        if job.output.parent.resolve() not in folders:
            continue
        written = overwrites or not is_done(job, errors, tokens)
        for place, replaced in ((job.output, written), (job.error_map, errors and written)):
            if not is_there(place) or place.samefile(job.source):
                continue
            own = is_own_result(place)
            if replaced and not own:
                raise InputError(f"{job.source}: its result would overwrite {place}, which is no result of this "
                                 "program: choose another --output, or a --suffix")
            if own or place == job.output:
                earlier.add(place.resolve())
    return earlier


def is_done(job: Job, errors: bool, tokens: bool) -> bool:
    """Whether a result is there with the map of errors and the tokens, if they are asked for: one without them is made
    again with them."""
    return is_there(job.output) and (not errors or is_there(job.error_map)) and (not tokens or is_there(job.tokens))


def is_own_result(path: Path) -> bool:
    """Whether a file says that this program made it."""
    return any(is_ours(program) for program in (software_of(path) or "").split(";"))


def is_there(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    return os.path.exists(path)


def per_frame(job: Job, frames: int) -> list[Job]:
    """A job for every frame of an animation, results NAME_frame0001 and so on; a still stays as it is."""
    if frames == 1:
        return [job]
    return [replace(job, frame=i, output=job.output.with_stem(f"{job.output.stem}_frame{i + 1:04d}"))
            for i in range(frames)]


def default_jobs(root: Path, names: OutputNames | None = None) -> list[Job]:
    """Every `root/{folder}/LR`, results into `root/{folder}/VARPrediction`. Raises InputError when there is none."""
    folders = sorted(root.glob(f"*/{LR_FOLDER}"))
    jobs = [job for folder in folders
            for job in jobs_for([(p, Path()) for p in pictures_in(folder)], folder.parent / RESULT_FOLDER, names)]
    if not jobs:
        raise InputError(f"no pictures in {root}/*/{LR_FOLDER}: put LR pictures there or name them with --input")
    return jobs


@dataclass(frozen=True)
class SizeRequest:
    """How large results shall be: by `scale`, or by given sides (the missing one keeps the aspect)."""

    scale: float
    width: int | None = None
    height: int | None = None
    longest: int | None = None

    def size(self, source: PictureSource) -> tuple[int, int]:
        """(height, width) of a picture's result. Raises ValueError where that shrinks it or enlarges it too far."""
        if self.longest is not None:
            size = result_size(source, self.longest / max(source.height, source.width))
        elif self.width is None and self.height is None:
            if not 1 <= self.scale <= MAX_SCALE:  # sides, which are rounded, say nothing of it
                raise UserError(f"a scale of {self.scale:g}: must be from 1 to {MAX_SCALE:g}")
            return result_size(source, self.scale)
        else:
            by_width = None if self.width is None else self.width / source.width
            by_height = None if self.height is None else self.height / source.height
            size = (result_size(source, by_width)[0] if self.height is None else self.height,
                    result_size(source, by_height)[1] if self.width is None else self.width)
        factors = size[0] / source.height, size[1] / source.width
        if min(factors) < 1 or max(factors) > MAX_SCALE:
            raise UserError(f"{source.width}x{source.height} to {size[1]}x{size[0]} is a scale of "
                             f"{min(factors):.3g} to {max(factors):.3g}: must be from 1 to {MAX_SCALE:g}")
        return size
