"""The map of expected errors as the page shows it: in colours, with what its numbers are worth."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inference.uncertainty import ErrorMap
from pictures.sheets import error_picture

from .preview import fitted


@dataclass(frozen=True)
class ErrorView:
    """picture: (3, h, w) in [0, 1] with a legend; label: what it is, in a few words; note: in a line, a warning
    included where the picture lies outside the calibration."""

    picture: Tensor
    label: str
    note: str

    @classmethod
    def of(cls, levels: Tensor, error: ErrorMap) -> ErrorView:
        """Of expected errors (H, W) in levels, and the map that they are of."""
        label = f"Expected error: {'uncalibrated guess' if error.head is None else 'calibrated'}"
        warning = "" if error.warning is None else f". ⚠ {error.warning[0].upper()}{error.warning[1:]}"
        return cls(error_picture(fitted(levels[None])[0]), label, error.description + warning)
