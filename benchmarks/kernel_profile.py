"""What a GPU does during a few calls: its kernels, how long each takes, and what the host waits for (`torch.profiler`).

Kernels alone are recorded, not PyTorch's operators: a generation launches thousands, and recording both would take
longer than the calls.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LONGEST = 10
NAME_LENGTH = 160
COPIES = ("Memcpy", "Memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")  # of the host
MICRO = 1e-6


def profile_kernels(call: Callable[[], object], device: torch.device, steady_seconds: float,
                    calls: int = 2) -> dict[str, Any]:
    """Kernels, copies and waits of a call, all per call, and the ten kernels that take longest together.

    steady_seconds: of a call that is not profiled. `busy_share` is the share of them in which a kernel or a copy runs;
    the rest is the host's, which names the kernels one by one. On a CPU, which has none, operators take the place of
    kernels.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from .machine import synchronize
    gpu = device.type == "cuda"
    call()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU], acc_events=True) as recorded:
        for _ in range(calls):
            call()
        synchronize(device)
    events = [event for event in recorded.key_averages() if not getattr(event, "is_user_annotation", False)]
    on_device = [event for event in events if (event.device_type == DeviceType.CUDA) == gpu]
    kernels = [event for event in on_device if not event.key.startswith(COPIES)]

    def seconds(event: Any) -> float:
        return (event.self_device_time_total if gpu else event.self_cpu_time_total) * MICRO / calls
    busy = sum(seconds(event) for event in on_device)
    return {
        "kernels": sum(event.count for event in kernels) / calls, "device_seconds": busy,
        "steady_seconds": steady_seconds, "busy_share": busy / steady_seconds,
        "longest": [{"name": event.key[:NAME_LENGTH], "count": event.count / calls, "seconds": seconds(event)}
                    for event in sorted(kernels, key=seconds, reverse=True)[:LONGEST]],
        "copies": {event.key: {"count": event.count / calls, "seconds": seconds(event)} for event in on_device
                   if event.key.startswith(COPIES)},
        "host_waits": {event.key: {"count": event.count / calls, "seconds": event.self_cpu_time_total * MICRO / calls}
                       for event in events if event.device_type == DeviceType.CPU and event.key in WAITS},
    }
