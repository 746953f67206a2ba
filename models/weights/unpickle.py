"""Read `.pth` files without running anything that they contain.

PyTorch's restricted unpickler builds tensors and plain containers. The allow-list adds the inert types that a
published checkpoint's `args` may hold; every other type is refused by name.
"""
from __future__ import annotations

import argparse
import logging
import pickle
import pickletools
import re
import struct
import zipfile
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from utils.errors import UserError

logger = logging.getLogger(__name__)

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"  # first byte of a pickle of protocol 2 or later, and so of PyTorch's old format

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]  # what a pickled NumPy number calls

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
    *[(_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]

# What damaged or foreign bytes make the unpickler raise.
_BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError,
           AttributeError, struct.error)


class CheckpointError(UserError):
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
        raise CheckpointError(f"{path}: {_explain(str(error), [] if zipped else _named_types(path))}") from error


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


def _named_types(path: Path) -> list[str]:
    """Types that the first pickle of a file refers to, read off its opcodes (nothing is built or imported)."""
    names, strings = [], []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        logger.debug("%s: its opcodes end early", path)
    return names


def _explain(error: str, types: list[str]) -> str:
    """One line for an error of the restricted unpickler; `types`: what the file refers to, where known."""
    refused = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported class ([\w.]+)", error)
    restricted = "weights_only" in error or "Weights only" in error
    if not refused and not restricted:
        return f"truncated or damaged ({error.splitlines()[0] if error else 'unexpected end'}): download it again"
    name = (refused.group(1) or refused.group(2)) if refused else ", ".join(dict.fromkeys(types))
    what = f"an object of type {name}, which may run code" if name else "more than tensors and plain values"
    return f"refused, because it holds {what}; nothing was run"
