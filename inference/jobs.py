"""Which pictures a script works on, and where their results go."""
from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pictures.formats import LR_FOLDER, RESULT_FOLDER, SUFFIXES, InputError, matching_reference, pictures_in
from pictures.rgb import MAX_SCALE, PictureSource, result_size
from utils.errors import UserError

AUTO = "auto"
# What `--ext auto` writes for a source; kinds that are not listed become PNG.
SAME_KIND = {".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg", ".webp": ".webp", ".tif": ".tif", ".tiff": ".tif"}


@dataclass(frozen=True)
class Job:
    """One picture to restore. `reference` is its HR picture where there is one; frame: of an animation, from 0."""

    source: Path
    output: Path
    reference: Path | None = None
    frame: int | None = None


@dataclass
class Found:
    """Pictures, each with its folder below the one that was asked for, and folders that could not be read."""

    pictures: list[tuple[Path, Path]] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputNames:
    """How results are called: `suffix` goes behind the stem, `ext` is "auto" or a file ending without the dot."""

    suffix: str = ""
    ext: str = "png"

    def name(self, source: Path) -> str:
        """File name of a source's result."""
        ending = SAME_KIND.get(source.suffix.lower(), ".png") if self.ext == AUTO else f".{self.ext}"
        return f"{source.stem}{self.suffix}{ending}"


def collect(pattern: str, recursive: bool = False) -> Found:
    """Pictures of a file, a folder (with its sub-folders if `recursive`) or a glob pattern.

    Raises InputError when there are none and nothing explains why.
    """
    path = Path(pattern)
    if path.is_file():
        return Found([(path, Path())])
    if path.is_dir():
        found = _in_folder(path, recursive)
        if not found.pictures and not found.failures:
            raise InputError(f"--input {pattern}: no pictures in this folder (known: {' '.join(SUFFIXES)})"
                             + ("" if recursive else "; --recursive looks into its sub-folders"))
        return found
    found = Found([(Path(p), Path()) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).is_file()])
    if not found.pictures:
        raise InputError(f"--input {pattern}: no such file or folder, and no file matches it as a pattern")
    return found


def _in_folder(folder: Path, recursive: bool) -> Found:
    found = Found()

    def unreadable(error: OSError) -> None:
        found.failures[Path(error.filename)] = f"{error.filename}: the folder cannot be read ({error.strerror})"
    for parent, folders, _ in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        below = Path(parent).relative_to(folder)
        found.pictures += [(picture, below) for picture in pictures_in(Path(parent))]
    return found


def jobs_for(pictures: Iterable[tuple[Path, Path]], output: Path, names: OutputNames | None = None) -> list[Job]:
    """Jobs for chosen pictures, results in `output` and the pictures' folders below it; `output` may be the one
    result's own file name. HR is looked for in the sister folder of `LR`.

    Raises InputError when two pictures would get the same result name.
    """
    names, pictures = names or OutputNames(), list(pictures)
    if output.suffix.lower() in SUFFIXES and not output.is_dir():
        if len(pictures) != 1:
            raise InputError(f"--output {output} names one file, but there are {len(pictures)} pictures: name a folder")
        return [Job(pictures[0][0], output, matching_reference(pictures[0][0]))]
    jobs: dict[Path, Job] = {}
    for source, below in pictures:
        target = output / below / names.name(source)
        if target in jobs:
            raise InputError(f"{source} and {jobs[target].source} would both be written to {target}: "
                             "rename one or process them apart")
        jobs[target] = Job(source, target, matching_reference(source))
    return list(jobs.values())


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
            return result_size(source, self.scale)
        else:
            by_width = None if self.width is None else self.width / source.width
            by_height = None if self.height is None else self.height / source.height
            size = (self.height or result_size(source, by_width)[0], self.width or result_size(source, by_height)[1])
        factors = size[0] / source.height, size[1] / source.width
        if min(factors) < 1 or max(factors) > MAX_SCALE:
            raise UserError(f"{source.width}x{source.height} to {size[1]}x{size[0]} is a scale of "
                             f"{min(factors):.3g} to {max(factors):.3g}: must be from 1 to {MAX_SCALE:g}")
        return size
