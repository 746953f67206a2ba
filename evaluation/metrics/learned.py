"""Metrics that need weights (ST-LPIPS; others through pyiqa) or published statistics (NIQE).

What cannot be had is named, not fatal.
"""
from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.weights.load import hub_at_once
from utils.errors import first_line

from ..protocols import NIQE, PAPER_PERCEPTUAL, ST_LPIPS, Metric
from .full_reference import PEAK, eight_bit
from .niqe import REMEDY, Pristine, find_parameters, load_parameters, niqe
from .st_lpips import REMEDY as ST_LPIPS_REMEDY
from .st_lpips import STLPIPS, find_weights

log = logging.getLogger(__name__)

NO_PYIQA = "pyiqa is not installed (pip install -r requirements-metrics.txt; its licence is non-commercial)"


class LearnedMetrics:
    """Those of the metrics that can be had here; `missing` says for each other one what it lacks."""

    def __init__(self, device: torch.device, metrics: Sequence[Metric] = PAPER_PERCEPTUAL) -> None:
        self.device = device
        self.missing: dict[str, str] = {}
        self.pristine: Pristine | None = None
        self.st_lpips: STLPIPS | None = None
        self.models: dict[Metric, object] = {}
        from_hub = _has_pyiqa() and any(metric.pyiqa for metric in metrics)
        with hub_at_once() if from_hub else contextlib.nullcontext():
            for metric in metrics:
                self._find(metric)
        for line in self.missing_lines():
            log.info(line)

    def missing_lines(self) -> list[str]:
        """A line a reason, with the metrics that it concerns."""
        return [f"{', '.join(column for column, why in self.missing.items() if why == reason)}: left out, {reason}"
                for reason in dict.fromkeys(self.missing.values())]

    def _find(self, metric: Metric) -> None:
        if metric == NIQE:
            self._find_niqe()
        elif metric == ST_LPIPS:
            self._find_st_lpips()
        elif metric.pyiqa:
            self._load(metric, metric.pyiqa)

    def _find_niqe(self) -> None:
        """Our own NIQE where an installed package has its statistics, else pyiqa's."""
        path = find_parameters()
        if path is not None:
            self.pristine = load_parameters(path)
            return
        self._load(NIQE, NIQE.kind)
        if NIQE.column in self.missing:
            self.missing[NIQE.column] = f"its pristine statistics are not here ({REMEDY}), and " \
                                        + self.missing[NIQE.column]

    def _find_st_lpips(self) -> None:
        path = find_weights()
        if path is None:
            self.missing[ST_LPIPS.column] = f"its weights are not here ({ST_LPIPS_REMEDY})"
            return
        self.st_lpips = STLPIPS(path).to(self.device)

    def _load(self, metric: Metric, name: str) -> None:
        if not _has_pyiqa():
            self.missing[metric.column] = NO_PYIQA
            return
        try:
            import pyiqa
            self.models[metric] = pyiqa.create_metric(name, device=self.device)
        except Exception as error:  # pyiqa downloads weights: any network, cache or import failure ends here
            reason = first_line(error)
            self.missing[metric.column] = f"pyiqa cannot get the weights of '{name}' ({reason})"

    def measure(self, image: Tensor, reference: Tensor | None) -> dict[str, float]:
        """All metrics that can be had, by column, of one picture (3, H, W) in [0, 1], rounded to 8 bits as its
        reference is; NIQE of large ones alone, and none that fails."""
        image, reference = _rounded(image), None if reference is None else _rounded(reference)
        values = {}
        if self.pristine is not None:
            try:
                values[NIQE.column] = niqe(image, self.pristine)
            except ValueError as error:
                log.debug("no NIQE: %s", error)
        if reference is not None:
            values |= self.distance(image, reference)
        for metric, model in self.models.items():
            if metric.of_folders or (metric.needs_reference and reference is None):
                continue
            pictures = [image, reference] if metric.needs_reference else [image]
            try:
                values[metric.column] = float(model(*(picture[None].to(self.device) for picture in pictures)))
            except (ValueError, RuntimeError) as error:  # too small a picture, too little memory (a RuntimeError)
                log.warning("%s of a picture is left out (%s)", metric.label, first_line(error))
        return values

    def distance(self, image: Tensor, reference: Tensor) -> dict[str, float]:
        """ST-LPIPS alone, by its column, of pictures (3, H, W) in [0, 1], rounded to 8 bits; nothing where it cannot
        be had."""
        if self.st_lpips is None:
            return {}
        try:
            value = self.st_lpips(*(_rounded(picture)[None].to(self.device) for picture in (image, reference)))
        except ValueError as error:
            log.debug("no ST-LPIPS: %s", error)
            return {}
        except RuntimeError as error:  # too little memory
            log.warning("ST-LPIPS of a picture is left out (%s)", first_line(error))
            return {}
        return {ST_LPIPS.column: value.item()}

    def fid(self, pairs: Iterable[tuple[Path, Path]]) -> float | None:
        """FID between results and their references, pairs of files, or None where it cannot be computed. A file that
        is in several pairs counts once."""
        model = next((model for metric, model in self.models.items() if metric.of_folders), None)
        sides = list(zip(*pairs, strict=True))
        if model is None or not sides:
            return None
        try:
            with tempfile.TemporaryDirectory(prefix="varsr_fid_") as folder:
                folders = [Path(folder, name) for name in ("results", "references")]
                for place, files in zip(folders, sides, strict=True):
                    _gather(files, place)
                return float(model(*map(str, folders)))
        except Exception as error:  # pyiqa reads the folders by itself and may fail in any way
            log.warning("FID is left out (%s)", error)
            return None


def _rounded(image: Tensor) -> Tensor:
    """A picture as an 8-bit file shows it, float32: a protocol's other metrics see it so."""
    return (eight_bit(image) / PEAK).float()


def _gather(files: Iterable[Path], folder: Path) -> None:
    """A folder of links to files and nothing else: pyiqa takes all that is in a folder and below it for pictures of the
    set. Numbers keep files of one name from other folders, or of one stem, apart."""
    folder.mkdir()
    for number, path in enumerate(dict.fromkeys(files)):
        place = folder / f"{number:06d}{path.suffix}"
        try:
            place.symlink_to(path.absolute())
        except (OSError, NotImplementedError):  # Windows lets few users make links, some file systems nobody
            shutil.copyfile(path, place)


def _has_pyiqa() -> bool:
    return importlib.util.find_spec("pyiqa") is not None
