"""What a process has of memory, and had at most."""
from __future__ import annotations

import resource

CLEAR_PEAK = "5"  # proc(5): resets VmHWM


def memory(field: str) -> int:
    """Bytes of VmRSS, VmHWM or VmSize. Raises OSError where there is no /proc."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def reset_peak() -> int:
    """Start the count of the peak anew; the memory that is in use. Without that what took more before hides all."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
            control.write(CLEAR_PEAK)
        return memory("VmRSS")
    except OSError:
        return _highest()


def peak() -> int:
    """Bytes that were in use at most since then."""
    try:
        return memory("VmHWM")
    except OSError:
        return _highest()


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
