"""Weight files in the safetensors format: read, checked, converted, written tensor by tensor and put in place at once.

The library's own writer wants every tensor in memory in its final type; this one holds one converted tensor at a
time, so that a 4 GB model is converted in little more memory than its largest tensor. A mapped file costs memory as it
is read and keeps it until the last of its tensors is gone; a converted tensor's pages are given back at once.
"""
from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import first_line

from ..config import FULL_PRECISION
from .published import CODE_USAGE, REBUILT, our_name, require_tensors
from .unpickle import CheckpointError

SUFFIX = ".safetensors"
MAPS = Path("/proc/self/maps")  # Linux; elsewhere nothing is released, and the system reclaims pages under pressure
ALIGNMENT = 8  # bytes; the data start at a multiple of it
HEADER_LENGTH = 8  # bytes of the number that a file begins with
MAX_HEADER = 2 ** 20  # bytes; 84,000 at the published size
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64",
               torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
WEIGHTS_IN_IDENTITY = re.compile(r"\((?:sampled )?sha256 [0-9a-f]+\)")
LISTED_NAMES = 8  # names per kind in an error message

State = dict[str, Tensor]


class MappedFile:
    """The places where a weight file is mapped into this process, or without a path every safetensors file."""

    def __init__(self, path: str | PathLike | None = None) -> None:
        self.ranges: list[tuple[int, int]] = []
        if not hasattr(mmap, "MADV_DONTNEED") or not MAPS.exists():
            return
        target = None if path is None else str(Path(path).resolve())
        for line in MAPS.read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and (fields[5] == target or target is None and fields[5].endswith(SUFFIX)):
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


def weights_of(identity: str) -> str:
    """The part of a model's identity (`load.identity`) that names the weights, whatever they are called; "" where
    there is none."""
    found = WEIGHTS_IN_IDENTITY.search(identity)
    return found[0] if found else ""


def finite(tensor: Tensor) -> bool:
    """Whether a floating tensor holds neither NaN nor infinity, without a temporary of its size."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, mapped from disk. Raises CheckpointError for a truncated or foreign file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        check_header(path)
        tensors = load_file(path)
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({first_line(error)}): copy or download it "
                              "again") from error
    require_tensors(tensors, str(path))
    return tensors


def check_header(path: Path) -> None:
    """Raise ValueError for a header of more tensors than any model has: the library makes each of a few bytes there an
    object of kilobytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(HEADER_LENGTH), "little")
    if size > MAX_HEADER:
        raise ValueError(f"a header of {size} bytes")


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


def convert_tensors(tensors: State, dtype: torch.dtype | None, path: Path) -> State:
    """Convert floating tensors of a file in place of the originals, one at a time."""
    file = MappedFile(path)
    for name, tensor in tensors.items():
        target = stored_type(name, tensor, dtype)
        if tensor.dtype != target:
            tensors[name] = tensor.to(target)
            file.release(tensor)
    return tensors


def stored_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Type of one of our tensors in a model of `dtype`."""
    if dtype is None or not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if name.startswith(FULL_PRECISION) else dtype


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare names, shapes, kinds and values with what a configuration asks for; CheckpointError lists all faults.

    Tensors of published files that are rebuilt anyway may be absent, and code usage may have any number of rows.
    """
    faults, file = _Faults(str(path)), MappedFile(path)
    for name, target in expected.items():
        if name not in tensors:
            if name != CODE_USAGE and not REBUILT.fullmatch(name):
                faults.missing.append(name)
            continue
        tensor = tensors[name]
        floating = target.is_floating_point()
        plain = tensor.layout is torch.strided and tensor.dtype in DTYPE_NAMES
        if not plain or tensor.is_floating_point() != floating:
            faults.misshapen.append(f"{name} ({tensor.dtype}, not {'floating' if floating else 'integer'} values)")
        elif name != CODE_USAGE and tensor.shape != target.shape:
            faults.misshapen.append(f"{name} {tuple(tensor.shape)} instead of {tuple(target.shape)}")
        elif not REBUILT.fullmatch(name) and not finite(tensor):
            faults.not_finite.append(name)
        file.release(tensor)
    faults.unknown += [name for name in tensors if name not in expected]
    faults.report(expected)


@dataclass
class _Faults:
    """What is wrong with a file's tensors, by name."""

    source: str
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def report(self, expected: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError if there is any fault."""
        kinds = {"missing": self.missing, "not known to this model": self.unknown, "of another shape": self.misshapen,
                 "with NaN or infinite values": self.not_finite}
        parts = [f"{len(names)} tensor(s) {kind}: {', '.join(names[:LISTED_NAMES])}"
                 + (f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else "")
                 for kind, names in kinds.items() if names]
        if parts:
            raise CheckpointError(f"{self.source}: {'; '.join(parts)}. Likely cause: {self._cause(expected)}")

    def _cause(self, expected: Mapping[str, Tensor]) -> str:
        def ours(names: Iterable[str], part: str) -> set[str]:
            return {name for name in names if (our_name(name) or name).startswith(part)}

        def lacks(part: str) -> bool:
            target = ours(expected, part)
            return bool(target) and target <= set(self.missing)

        prefix = "transformer.prefix_encoder."
        if lacks("transformer.blocks."):
            return "a tokenizer file where a whole model is needed"
        if lacks("vqvae.encoder."):
            return "a transformer file where a tokenizer or a whole model is needed"
        if lacks(prefix):
            return "a class-to-image file where a super-resolution one is needed"
        if lacks("refiner."):
            return "a bare VAR file without the diffusion refiner"
        if ours(self.unknown, prefix):
            return "a super-resolution file where a class-to-image one is needed"
        if self.misshapen:
            return "a model of another size, or a configuration or tokenizer that belongs to another model"
        if self.missing:
            return "a truncated or edited file: download it again"
        if self.unknown:
            return "a file of another version or architecture"
        return "a damaged download or a training that diverged"
