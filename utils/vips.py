"""libvips: pictures of 16 bits, colour profiles, and files that are written band by band.

Imported inside functions only, for the library takes a while to start.
"""
from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import numpy as np

FORMATS = {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}
INTERPRETATIONS = {np.dtype(np.uint8): {1: "b-w", 2: "b-w", 3: "srgb", 4: "srgb"},
                   np.dtype(np.uint16): {1: "grey16", 2: "grey16", 3: "rgb16", 4: "rgb16"}}


@cache
def vips() -> ModuleType:
    """The module, without its cache of operations: it would answer from files that have changed since."""
    import pyvips
    logging.getLogger("pyvips").setLevel(logging.WARNING)  # it tells of every thread pool
    pyvips.cache_set_max(0)
    return pyvips


def reason(error: Exception) -> str:
    """The first line that says something in a libvips error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("unable to")), lines[0] if lines else "unknown")
