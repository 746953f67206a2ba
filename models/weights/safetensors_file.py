"""Weight files in the safetensors format, written tensor by tensor and put in place at once.

The library's own writer wants every tensor in memory in its final type; this one holds one converted tensor at a
time, so that a 4 GB model is converted in little more memory than its largest tensor.
"""
from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from .unpickle import CheckpointError

SUFFIX = ".safetensors"
MAPS = Path("/proc/self/maps")  # Linux; elsewhere nothing is released, and the system reclaims pages under pressure

ALIGNMENT = 8  # bytes; the data start at a multiple of it
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64",
               torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


class MappedFile:
    """The places where a weight file is mapped into this process, or without a path every safetensors file."""

    def __init__(self, path: str | PathLike | None = None) -> None:
        self.ranges: list[tuple[int, int]] = []
        if not hasattr(mmap, "MADV_DONTNEED") or not MAPS.exists():
            return
        wanted = None if path is None else str(Path(path).resolve())
        for line in MAPS.read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and (fields[5] == wanted or wanted is None and fields[5].endswith(SUFFIX)):
                start, end = fields[0].split("-")
                self.ranges.append((int(start, 16), int(end, 16)))

    def release(self, tensor: Tensor) -> None:
        """Give back the memory of an unmodified tensor of this file; touching it reads the file's pages again.

        Does nothing to a tensor elsewhere in memory.
        """
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        if tensor.is_contiguous() and any(low <= start and end <= high for low, high in self.ranges):
            start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: neighbours share the outer ones
            end = end // mmap.PAGESIZE * mmap.PAGESIZE
            if end > start:
                advise = ctypes.CDLL(None).madvise
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(mmap.MADV_DONTNEED))


def finite(tensor: Tensor) -> bool:
    """Whether a floating tensor holds neither NaN nor infinity, without a temporary of its size."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, mapped from disk. Raises CheckpointError for a truncated or foreign file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): copy or download it again"
                              ) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype],
                      metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, each in its type of `dtypes`; `metadata` are text entries of the file's header.

    Raises CheckpointError where a value leaves the type's range.
    """
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))  # wide types first keep all aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtypes[name]], "shape": list(tensors[name].shape),
                        "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in order:
            converted = tensors[name].detach().to("cpu", dtypes[name]).contiguous()
            if converted.is_floating_point() and not finite(converted):
                raise CheckpointError(f"tensor '{name}' is not finite as {dtypes[name]}"
                                      + (": use bf16 or fp32" if finite(tensors[name]) else ""))
            file.write(converted.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
