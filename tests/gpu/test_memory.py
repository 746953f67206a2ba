"""Batches that the memory does not hold. The dry run lets the model refuse them."""
from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from embedded import embedded_model, levels_apart, sample_lr
from torch import Tensor

from inference.generate import automatic_batch_size, free_memory, window_bytes
from inference.restore import restore
from inference.settings import RestoreSettings
from models.varsr import VARSR

pytestmark = pytest.mark.gpu
FEW, MANY = 2, 32  # windows at a time
MEBIBYTE = 2 ** 20


def peaks(device: torch.device, run: Callable[[], object]) -> tuple[int, int]:
    """Bytes that a run reserves and that it uses, at most, with nothing kept from before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)


@contextmanager
def limited(device: torch.device, size: int) -> Iterator[None]:
    """So many bytes of the GPU and no more."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info(device)[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model that takes no more than FEW windows at a time."""
    generate = VARSR.generate_latent

    def small_memory(self: VARSR, lr: Tensor, **options: object) -> Tensor:
        if len(lr) > FEW:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, lr, **options)
    with monkeypatch.context() as patch:
        patch.setattr(VARSR, "generate_latent", small_memory)
        yield


@contextmanager
def room_for_few(device: torch.device, restored: Callable[[int], Tensor],
                 monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory for FEW windows at a time, but not for MANY."""
    if device.type != "cuda":
        with refusing(monkeypatch):
            yield
        return
    few, _ = peaks(device, lambda: restored(FEW))
    _, many = peaks(device, lambda: restored(MANY))
    print(f"{FEW} windows reserve {few // MEBIBYTE} MiB, {MANY} use {many // MEBIBYTE} MiB")
    assert few < many, "the test shows nothing: a small batch takes as much as a large one"
    with limited(device, (few + many) // 2):
        yield


def test_a_batch_that_does_not_fit_is_halved(device: torch.device, full_precision: None,
                                             monkeypatch: pytest.MonkeyPatch,
                                             caplog: pytest.LogCaptureFixture) -> None:
    """The run finishes, and the picture is that of small batches.

    With guidance, logits are most of the memory. No logit of this picture leads by less than 2.5e-4 (measured on a
    CPU), so that no batch size should decide a code.
    """
    model = embedded_model(device)
    generation = dataclasses.replace(model.config.generation, cfg=1.0, fidelity=1.0)
    lr = sample_lr("astronaut")

    def restored(batch: int) -> Tensor:
        return restore(model, lr, RestoreSettings(generation, batch_size=batch, color_fix="adain"))
    expected = restored(FEW)
    with room_for_few(device, restored, monkeypatch), caplog.at_level(logging.WARNING):
        found = restored(MANY)
    sizes = [record.args[0] for record in caplog.records if "out of memory" in record.msg]
    assert sizes and sizes == [16, 8, 4, 2, 1][:len(sizes)]
    assert (levels_apart(found, expected) > 1).float().mean() < 0.001


def test_what_is_known_of_the_memory(cuda: torch.device) -> None:
    """The free memory follows what is used, freed blocks that PyTorch keeps count as free, and the batch that is chosen
    takes less than the estimate says."""
    gc.collect()
    torch.cuda.empty_cache()
    before, size = free_memory(cuda), 512 * MEBIBYTE
    block = torch.empty(size, dtype=torch.uint8, device=cuda)
    assert before - free_memory(cuda) >= 0.9 * size
    del block
    assert before - free_memory(cuda) < 0.5 * size
    model = embedded_model(cuda)
    assert automatic_batch_size(model, guided=True).size == 64  # as many as fill the GPU
    lr = torch.rand(16, 3, 128, 128, device=cuda)
    options = dataclasses.replace(model.config.generation, cfg=1.0, fidelity=1.0)
    _, one = peaks(cuda, lambda: model.generate(lr[:1], options=options))
    _, sixteen = peaks(cuda, lambda: model.generate(lr, options=options))
    print(f"a window takes {(sixteen - one) / 15 / MEBIBYTE:.1f} MiB, the estimate is "
          f"{window_bytes(model, guided=True) / MEBIBYTE:.1f} MiB")
    assert (sixteen - one) / 15 < 1.5 * window_bytes(model, guided=True)
