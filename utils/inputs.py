"""Which pictures a script works on, and where their results go."""
from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .images import SUFFIXES

LR_FOLDER, HR_FOLDER, RESULT_FOLDER = "LR", "HR", "VARPrediction"


class InputError(ValueError):
    """There is nothing to work on; the message names the place that was searched."""


@dataclass(frozen=True)
class Job:
    """One picture to restore. `reference` is its HR picture where there is one."""

    source: Path
    output: Path
    reference: Path | None = None


def pictures_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def collect(pattern: str) -> list[Path]:
    """Pictures of a file, a folder or a glob pattern. Raises InputError when there are none."""
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = pictures_in(path)
        if not found:
            raise InputError(f"--input {pattern}: no pictures in this folder (known: {' '.join(SUFFIXES)})")
        return found
    found = sorted(p for p in map(Path, glob.glob(pattern)) if p.is_file())
    if not found:
        raise InputError(f"--input {pattern}: no such file or folder, and no file matches it as a pattern")
    return found


def jobs_for(sources: Iterable[Path], output: Path) -> list[Job]:
    """Jobs for chosen pictures, results as PNG in one folder; HR is looked for in the sister folder of `LR`.

    Raises InputError when two pictures would get the same result name.
    """
    jobs: dict[Path, Job] = {}
    for source in sources:
        target = output / f"{source.stem}.png"
        if target in jobs:
            raise InputError(f"{source} and {jobs[target].source} would both be written to {target}: "
                             "rename one or process them apart")
        jobs[target] = Job(source, target, matching_reference(source))
    return list(jobs.values())


def matching_reference(source: Path) -> Path | None:
    """The HR picture of an LR picture: the same stem in the folder `HR` beside its own."""
    folder = source.parent.parent / HR_FOLDER
    if source.parent.name != LR_FOLDER or not folder.is_dir():
        return None
    return next((p for p in pictures_in(folder) if p.stem == source.stem), None)


def default_jobs(root: Path) -> list[Job]:
    """Every `root/{folder}/LR`, results into `root/{folder}/VARPrediction`. Raises InputError when there is none."""
    folders = sorted(root.glob(f"*/{LR_FOLDER}"))
    jobs = [job for folder in folders for job in jobs_for(pictures_in(folder), folder.parent / RESULT_FOLDER)]
    if not jobs:
        raise InputError(f"no pictures in {root}/*/{LR_FOLDER}: put LR pictures there or name them with --input")
    return jobs
