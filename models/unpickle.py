"""Read `.pth` files without running anything that they contain.

PyTorch's restricted unpickler builds tensors and plain containers. The allow-list adds the inert types that a
published checkpoint's `args` may hold; every other type is refused by name.
"""
from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"  # first byte of a pickle of protocol 2 or later, and so of PyTorch's old format

# (class to build, name in the pickle). Paths become pure ones: they cannot touch the disk and load on any system.
ALLOWED_GLOBALS = [
    (argparse.Namespace, "argparse.Namespace"),
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib.PurePosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),
    (PureWindowsPath, "pathlib.WindowsPath"),
    (np.dtype, "numpy.dtype"),
    *[(type(np.dtype(name)), f"numpy.dtypes.{type(np.dtype(name)).__name__}")
      for name in ("bool", "int32", "int64", "float32", "float64")],
    *[(type(np.float64(0).__reduce__()[0]) and np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar")
      for core in ("core", "_core")],
]

# What damaged or foreign bytes make the unpickler raise.
_BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError,
           AttributeError)


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message names the file, the tensor or type, and the likely cause."""


def load_pickle(path: str | PathLike) -> Any:
    """The object in a `.pth` file, its tensors on the CPU and mapped from disk where the file allows it.

    Raises FileNotFoundError, or CheckpointError for a file that is truncated, no PyTorch file, or holds a type that
    is not allowed (named in the message; nothing of it has run).
    """
    path = Path(path)
    zipped = _is_zip(path)
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _BROKEN as error:
        raise CheckpointError(f"{path}: {_explain(str(error))}") from error


def _is_zip(path: Path) -> bool:
    """True for PyTorch's zip format, False for its old one. Raises CheckpointError for anything else."""
    with path.open("rb") as file:
        start = file.read(len(ZIP_MAGIC))
    size = path.stat().st_size
    if start == ZIP_MAGIC:
        if not zipfile.is_zipfile(path):  # the directory stands at the end
            raise CheckpointError(f"{path} is truncated after {size} bytes: download it again")
        return True
    if start[:1] != PICKLE_MAGIC:
        raise CheckpointError(f"{path} ({size} bytes) is no PyTorch file, perhaps an error page or a pointer file: "
                              "download it again")
    return False


def _explain(error: str) -> str:
    """One line for an error of the restricted unpickler."""
    refused = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported class ([\w.]+)", error)
    if refused:
        name = refused.group(1) or refused.group(2)
        return f"refused, because it holds an object of type {name}, which may run code; nothing was run"
    if "weights_only" in error or "Weights only" in error:
        detail = re.search(r"WeightsUnpickler error: (.+)", error)
        return f"refused, because it does not hold plain tensors ({detail.group(1) if detail else 'unknown content'})"
    return f"truncated or damaged ({error.splitlines()[0] if error else 'unexpected end'}): download it again"
