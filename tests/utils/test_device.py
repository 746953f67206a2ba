"""The device of each process; the allocator setting, judged by what the kernel counts."""
from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.device import choose_device, training_device

ROOT = Path(__file__).resolve().parents[2]
COUNT_FAULTS = """
import resource, sys, torch
from utils.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):  # glibc first fills its free heap of 256 MiB
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    """Fresh pages touched by ten tensors of 40 MB, one after the other."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, mode], cwd=ROOT, check=True, capture_output=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_blocks_are_used_again() -> None:
    assert page_faults("keep") * 20 < page_faults("default")


@pytest.mark.parametrize("name, world, expected", [
    ("auto", "4", "cuda:2"), ("cuda", "4", "cuda:2"), ("cuda:1", "4", "cuda:1"), ("cuda", "1", "cuda:0"),
    ("cpu", "4", "cpu")])
def test_every_process_has_its_own_gpu(name: str, world: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    for attribute, value in (("is_available", lambda: True), ("device_count", lambda: 4), ("current_device", lambda: 0),
                             ("set_device", chosen.append)):
        monkeypatch.setattr(torch.cuda, attribute, value)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert str(training_device(name)) == expected and [str(each) for each in chosen] == [expected][:name != "cpu"]
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert str(choose_device(name)) == ("cuda" if expected == "cuda:0" else expected)
