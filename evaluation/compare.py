"""Evaluating folders of results: partners by name, values by picture, means by method with bootstrapped intervals.

A picture that lacks its partner or cannot be measured is named and counted; the others go on.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pictures.formats import (
    ERROR_MAP_ENDING,
    NEEDED,
    ImageError,
    InputError,
    original_of,
    other_files_in,
    pictures_in,
)
from pictures.rgb import TensorSource, read_image, upsample_region
from utils.errors import UserError, exit_code, first_line

from .measure import Measurer
from .protocols import Protocol

log = logging.getLogger(__name__)

RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0  # of the bootstrap (Efron's percentile method)
BICUBIC = "bicubic"
Values = dict[str, float]  # by column
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` pictures and its confidence interval (none of a single value)."""

    mean: float
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float], resamples: int = RESAMPLES, confidence: float = CONFIDENCE,
             seed: int = SEED) -> Estimate:
    """Mean of at least one value and its percentile interval; the same for the same values and seed."""
    if not len(values):
        raise UserError("there is no mean of no values")
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:
        return Estimate(float(array[0]), None, None, 1)
    drawn = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    means = array[drawn].mean(axis=1)
    tail = 100 * (1 - confidence) / 2
    # actual resampled means, not values between two: one of them may be infinite (PSNR of equal pictures)
    low = np.percentile(means, tail, method="lower")
    high = np.percentile(means, 100 - tail, method="higher")
    return Estimate(float(array.mean()), float(low), float(high), len(array))


@dataclass(frozen=True)
class Folders:
    """What is compared: a folder of results a method, and originals and LR pictures where there are any."""

    results: dict[str, Path]  # by method
    hr: Path | None = None
    lr: Path | None = None


@dataclass
class Partners:
    """The files of one picture name."""

    results: dict[str, Path] = field(default_factory=dict)  # by method
    hr: Path | None = None
    lr: Path | None = None


@dataclass
class Evaluation:
    """Values by method and picture name, values of whole folders, means, and everything that was left out."""

    protocol: Protocol
    folders: Folders
    pictures: dict[str, Partners]
    values: dict[str, dict[str, Values]] = field(default_factory=dict)
    folder_values: dict[str, Values] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # metrics that cannot be had here, with the reason
    failures: list[str] = field(default_factory=list)
    stop: KeyboardInterrupt | None = None  # what ended it before its end

    @property
    def exit_code(self) -> int:
        """1 if any picture was left out; of a stopped evaluation its own."""
        if self.stop is not None:
            return exit_code(self.stop)
        return 1 if self.failures else 0

    def means(self) -> dict[str, dict[str, Estimate]]:
        """Mean of every column over a method's pictures, by method."""
        table = {}
        for method, rows in self.values.items():
            table[method] = {}
            for metric in self.protocol.metrics:
                column = [row[metric.column] for row in rows.values() if metric.column in row]
                if column:
                    table[method][metric.column] = estimate(column)
            table[method].update({name: Estimate(value, None, None, len(rows))
                                  for name, value in self.folder_values.get(method, {}).items()})
        return table


def find_folders(results: Sequence[Path], names: Sequence[str] | None, hr: Path | None, lr: Path | None) -> Folders:
    """Check the folders and name the methods (by default after their folders).

    Raises InputError for a missing or empty folder, or names that do not fit.
    """
    for folder in (*results, *(path for path in (hr, lr) if path)):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        if not pictures_in(folder):
            packages = {NEEDED[path.suffix.lower()] for path in other_files_in(folder) if path.suffix.lower() in NEEDED}
            raise InputError(f"{folder}: no pictures in this folder"
                             + (f" that can be read without {', '.join(sorted(packages))}" if packages else ""))
    names = list(names or _folder_names(results))
    if len(names) != len(results):
        raise InputError(f"--names gives {len(names)} names for {len(results)} folders")
    if len(set(names)) < len(names) or (lr and BICUBIC in names):
        raise InputError(f"--names must differ{f' (and {BICUBIC} is taken by --lr)' if lr else ''}: {', '.join(names)}")
    return Folders(dict(zip(names, results, strict=True)), hr, lr)


def _folder_names(results: Sequence[Path]) -> list[str]:
    """Folder names, with the folder above where that is needed to tell them apart."""
    names = [path.resolve().name for path in results]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in results]
    return names


def _by_name(folder: Path, failures: list[str]) -> dict[str, Path]:
    """A folder's pictures by stem, without the maps of expected errors that lie beside their results."""
    found: dict[str, Path] = {}
    pictures = pictures_in(folder)
    maps = {f"{path.stem}{ERROR_MAP_ENDING}" for path in pictures}
    for path in pictures:
        if path.name in maps:
            continue
        if path.stem in found:
            failures.append(f"{path}: {found[path.stem].name} has the same name and is the one that counts")
        found.setdefault(path.stem, path)
    return found


def _named_as(hr: dict[str, Path], found: dict[str, Path]) -> dict[str, Path]:
    """Pictures by the names of their originals: `0801x4` belongs to `0801`."""
    named = {}
    for stem, path in found.items():
        original = original_of(stem, hr)
        named[stem if original is None or original in found else original] = path
    return named


def find_partners(folders: Folders) -> tuple[dict[str, Partners], list[str]]:
    """The files of every picture name, and a line about every partner that is missing."""
    failures: list[str] = []
    hr = _by_name(folders.hr, failures) if folders.hr else {}
    by_method = {method: _named_as(hr, _by_name(folder, failures)) for method, folder in folders.results.items()}
    lr = _named_as(hr, _by_name(folders.lr, failures)) if folders.lr else {}
    pictures = {name: Partners(hr=hr.get(name), lr=lr.get(name))
                for name in sorted({*hr, *(name for found in by_method.values() for name in found)})}
    for name, partners in pictures.items():
        partners.results = {method: found[name] for method, found in by_method.items() if name in found}
        failures += [f"{folder / name}: no result of this name, as there is for others"
                     for method, folder in folders.results.items() if method not in partners.results]
        failures += [f"{folder / name}: no picture of this name, the partner of a result"
                     for folder, partner in ((folders.hr, partners.hr), (folders.lr, partners.lr))
                     if folder and not partner and partners.results]
    return {name: partners for name, partners in pictures.items() if partners.results}, failures


class Evaluator:
    """Measures every picture of every method by one protocol."""

    def __init__(self, protocol: Protocol, device: torch.device) -> None:
        self.protocol, self.measurer = protocol, Measurer(protocol, device)

    def run(self, folders: Folders, progress: Progress | None = None) -> Evaluation:
        """Values, means and what was left out; progress: called after each picture with its name and their number."""
        pictures, failures = find_partners(folders)
        result = Evaluation(self.protocol, folders, pictures, missing=dict(self.measurer.missing), failures=failures)
        methods = (*((BICUBIC,) if folders.lr else ()), *folders.results)
        result.values = {method: {} for method in methods}
        try:
            for name, partners in pictures.items():
                if folders.hr is None or partners.hr is not None:
                    self._measure(name, partners, result)
                if progress is not None:
                    progress(name, len(pictures))
            result.folder_values = self._of_folders(result)
        except KeyboardInterrupt as stop:  # what is measured counts
            result.stop = stop
        result.values = {method: rows for method, rows in result.values.items() if rows}
        return result

    def _measure(self, name: str, partners: Partners, result: Evaluation) -> None:
        """All methods' values of one picture."""
        try:
            reference = read_image(partners.hr) if partners.hr else None
        except ImageError as error:
            result.failures.append(str(error))
            return
        size = reference.shape[-2:] if reference is not None else None
        for method, path in partners.results.items():
            try:
                image = read_image(path)
                size = size or image.shape[-2:]
                self._add(method, name, path, image, reference, result)
            except (ValueError, RuntimeError) as error:
                result.failures.append(_named(path, error))
        if partners.lr is not None and size is not None:
            try:
                bicubic = enlarged(read_image(partners.lr), size)
                self._add(BICUBIC, name, partners.lr, bicubic, reference, result)
            except (ValueError, RuntimeError) as error:
                result.failures.append(_named(partners.lr, error))

    def _add(self, method: str, name: str, path: Path, image: Tensor, reference: Tensor | None,
             result: Evaluation) -> None:
        values, refused = self.measurer.measure(image, reference)
        for column, reason in refused.items():
            log.info("%s has no %s: %s", path, column, reason)
        result.values[method][name] = values

    def _of_folders(self, result: Evaluation) -> dict[str, Values]:
        """Values of all results that were measured, each with its original."""
        metric = next((metric for metric in self.protocol.metrics if metric.of_folders), None)
        if metric is None or result.folders.hr is None or metric.column in self.measurer.missing:
            return {}
        found = {method: self.measurer.learned.fid(
            (result.pictures[name].results[method], result.pictures[name].hr) for name in result.values[method])
            for method in result.folders.results}
        return {method: {metric.column: value} for method, value in found.items() if value is not None}


def enlarged(lr: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic enlargement (3, H, W) in [0, 1] of an LR picture (3, h, w) to `size` (H, W)."""
    return upsample_region(TensorSource(lr), tuple(size), 0, 0, *size)


def _named(path: Path, error: Exception) -> str:
    line = first_line(error)
    return line if str(path) in line else f"{path}: {line}"
