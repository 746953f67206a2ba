"""The statistics of pristine photographs that NIQE compares with, where an installed package has brought them.

They are the published ones (LIVE, University of Texas at Austin; free to use with a citation). They are not part of
this repository.
"""
from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEATURES = 36
# Packages that bring the file, and its place in them; none of them has to be importable.
SHIPPED = (("mmagic", "evaluation/metrics/niqe_pris_params.npz"), ("basicsr", "metrics/niqe_pris_params.npz"))
REMEDY = "pip install --no-deps mmagic"


@dataclass(frozen=True)
class Pristine:
    """Mean (36,) and covariance (36, 36) of the features of pristine photographs, float64."""

    mean: Tensor
    covariance: Tensor


def find_parameters() -> Path | None:
    """The parameter file of an installed package; nothing is imported."""
    for package, inside in SHIPPED:
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (path := Path(folder) / inside).is_file():
                return path
    return None


def load_parameters(path: Path) -> Pristine:
    """Read a parameter file. Raises ValueError naming it if it holds something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = arrays["mu_pris_param"], arrays["cov_pris_param"]
        return Pristine(torch.from_numpy(mean.astype(np.float64).reshape(FEATURES)),
                        torch.from_numpy(covariance.astype(np.float64).reshape(FEATURES, FEATURES)))
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not NIQE's parameters ({error})") from error
