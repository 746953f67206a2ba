"""What the machine computes with: devices, types of numbers, autocast contexts, memory that is kept or given back."""
from __future__ import annotations

import ctypes
import logging
import os
import platform
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError, first_line
from .flags import DTYPES, EIGHT_BIT

log = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
BF16_TILES, BF16_VECTORS = "amx_bf16", "avx512_bf16"  # of /proc/cpuinfo
INTEL = "GenuineIntel"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)
KEPT_BLOCK = 64 * 2 ** 20  # blocks up to this come from the heap
KEPT_TOTAL = 256 * 2 ** 20  # free bytes at the heap's top that are not given back
GLIBC = "glibc"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context for "fp32", "fp16" or "bf16"."""
    dtype = AUTOCAST_DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def training_precision(name: str | None, device: torch.device) -> str:
    """A precision by name; None: "bf16" where the device computes in it, else "fp32"."""
    if name is None:
        return "bf16" if computes_bf16(device) else "fp32"
    warn_of_imitation(device, AUTOCAST_DTYPES[name])
    return name


def computes_bf16(device: torch.device) -> bool:
    """Whether a device's bfloat16 products are faster than its float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_computes_bf16()


def cpu_computes_bf16(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor's bfloat16 products are faster than its float32 ones (told by Linux alone).

    Intel's vector instructions for them are not: without tiles (AMX, which virtual machines may hide) a Xeon reached
    0.16 TFLOP/s in bf16 and 0.31 in fp32, AMD's EPYC 0.42 and 0.18.
    """
    if not info.exists():
        return False
    lines = (line.partition(":") for line in info.read_text().splitlines())
    fields = {name.strip(): value.split() for name, _, value in lines}
    flags = fields.get("flags", [])
    return BF16_TILES in flags or BF16_VECTORS in flags and INTEL not in fields.get("vendor_id", [])


def warn_of_imitation(device: torch.device, dtype: torch.dtype | None) -> None:
    """Log a warning where an x86 processor has no instructions for a 16-bit type: hundreds of times slower."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    works = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    if works and hasattr(torch.ops.mkldnn, works) and not getattr(torch.ops.mkldnn, works)():
        log.warning("this processor only imitates %s, which is slow: fp32 is the faster type here",
                    str(dtype).removeprefix("torch."))


def choose_device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU of this process if there is one, "cuda" too. Raises ValueError where it does
    not exist."""
    try:
        device = _named(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {first_line(error)}") from error
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of activations by a name of --dtype; "auto" is the fastest that the device computes in."""
    if name not in ("auto", *EIGHT_BIT):
        return getattr(torch, DTYPES[name])
    if computes_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def require_floats(what: str, picture: Tensor) -> None:
    """Raise UserError for a picture in whole numbers where one in [0, 1] is wanted: 8-bit levels would become white."""
    if not picture.is_floating_point():
        raise UserError(f"{what}: values of {picture.dtype}, must be floats in [0, 1]: divide 8-bit levels by 255")


def local_device(rank: int | None = None) -> str:
    """The device of "auto" for this process: its own GPU of this machine, else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", 0)) if rank is None else rank
    return f"cuda:{local % torch.cuda.device_count()}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "cuda"


def _named(name: str) -> torch.device:
    """The device of a name, where "auto" and "cuda" leave it to this process which one."""
    own = name == "auto" or (name == "cuda" and torch.cuda.is_available())
    return torch.device(local_device() if own else name)


def training_device(name: str) -> torch.device:
    """"auto" is the GPU of this process if there is one, else the CPU; "cuda" its GPU too. Raises ValueError for a
    device without use."""
    device = _named(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: PyTorch sees no GPU here, use --device cpu")
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(device)
    return device


def exact_type(device: torch.device) -> torch.dtype:
    """The type in which products have at least float32's precision: on a GPU those of float32 may be TF32's, of 10
    bits, and the switches for that are the whole process's, other threads' too."""
    return torch.float64 if device.type == "cuda" else torch.float32


def keep_freed_memory() -> bool:
    """Let activations of up to 64 MiB reuse freed memory instead of mapping fresh pages; True where it took effect.

    By default glibc returns every large block to the system when it is freed, and the kernel clears its pages when
    the next layer asks for it again: a tenth of the published model's time on a CPU. Other systems are left alone.
    """
    if platform.libc_ver()[0] != GLIBC:
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK) and libc.mallopt(M_TRIM_THRESHOLD, KEPT_TOTAL))


def return_freed_memory() -> None:
    """Give freed memory back where small pieces that are still in use hold it (glibc; other systems do as they do)."""
    if platform.libc_ver()[0] == GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
