"""Folders of pictures: which files are pictures, and the HR picture that belongs to an LR one."""
from __future__ import annotations

from pathlib import Path

from .formats import SUFFIXES

LR_FOLDER, HR_FOLDER, RESULT_FOLDER = "LR", "HR", "VARPrediction"


class InputError(ValueError):
    """There is nothing to work on; the message names the place that was searched."""


def pictures_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def matching_reference(source: Path) -> Path | None:
    """The HR picture of an LR picture: the same stem in the folder `HR` beside its own."""
    folder = source.parent.parent / HR_FOLDER
    if source.parent.name != LR_FOLDER or not folder.is_dir():
        return None
    return next((p for p in pictures_in(folder) if p.stem == source.stem), None)
