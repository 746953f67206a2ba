"""How the process keeps memory that it will soon need again, and gives back what it will not."""
from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)
KEPT_BLOCK = 64 * 2 ** 20  # blocks up to this come from the heap
KEPT_TOTAL = 256 * 2 ** 20  # free bytes at the heap's top that are not given back

GLIBC = "glibc"


def keep_freed_memory() -> bool:
    """Let activations of up to 64 MiB reuse freed memory instead of mapping fresh pages; True where it took effect.

    By default glibc returns every large block to the system when it is freed, and the kernel clears its pages when
    the next layer asks for it again: a tenth of the published model's time on a CPU. Other systems are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK) and libc.mallopt(M_TRIM_THRESHOLD, KEPT_TOTAL))


def return_freed_memory() -> None:
    """Give freed memory back where small pieces that are still in use hold it (glibc; other systems do as they do)."""
    if platform.libc_ver()[0] == GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
