"""What a benchmark needs to know of the machine: its description, its GEMM rate, a process's peak memory."""
from __future__ import annotations

import math
import platform
import resource
import sys
import time
from pathlib import Path

import torch

GEMM_SIZES = {"cpu": 2048, "cuda": 8192}
GEMM_SECONDS = 2.0
READ_BYTES, READ_RUNS = 2 ** 29, 5
KILO = 1024


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_rate(device: torch.device, dtype: torch.dtype, seconds: float = GEMM_SECONDS,
              size: int | None = None) -> float:
    """Best rate in FLOP/s of large square matrix products, over a few seconds."""
    size = size or GEMM_SIZES.get(device.type, GEMM_SIZES["cpu"])
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b  # libraries load with their first use
    synchronize(device)
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best


def read_rate(device: torch.device, size: int = READ_BYTES) -> float:
    """Best rate in bytes/s of reading memory (of `size` bytes) far larger than the caches."""
    values, best = torch.ones(size // 4, device=device), float("inf")
    for _ in range(READ_RUNS):
        start = time.perf_counter()
        values.sum()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return size / best


def peak_memory(device: torch.device) -> int:
    """Bytes: peak allocation on a GPU, peak resident size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KILO


def reset_peak_memory(device: torch.device) -> None:
    """Have `peak_memory` of a GPU begin anew; a process's never does."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def describe(device: torch.device) -> dict[str, str | int]:
    """Processor, threads and library versions, for the result files."""
    facts: dict[str, str | int] = {"torch": torch.__version__, "python": platform.python_version(),
                                   "threads": torch.get_num_threads(), "cpu": _cpu_name()}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
