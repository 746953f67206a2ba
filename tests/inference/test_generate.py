"""Windows in batches: mixed pictures, memory that runs out, stores in memory and in files."""
from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from inference import generate, render
from inference.generate import (
    BatchSize,
    ahead,
    automatic_batch_size,
    free_memory,
    generate_windows,
    is_out_of_memory,
    window_bytes,
)
from inference.large import FileLatents, Flags
from inference.restore import restore
from inference.settings import RestoreSettings
from inference.windows import TiledPicture
from models.config import GenerationConfig
from models.varsr import VARSR
from pictures.rgb import TensorSource

SETTINGS = RestoreSettings(GenerationConfig(cfg=1.0, top_k=4))


def tiled(model: VARSR, seed: int, size: tuple[int, int]) -> TiledPicture:
    lr = torch.rand(3, size[0] // 4, size[1] // 4, generator=torch.Generator().manual_seed(seed))
    return TiledPicture(TensorSource(lr), size, model.config)


def latents(model: VARSR, pictures: list[TiledPicture], batch: BatchSize) -> list[torch.Tensor]:
    generate_windows(model, [(p, window) for p in pictures for window in p.grid], SETTINGS, batch)
    return [torch.stack([p.finished[window.index] for window in p.grid]) for p in pictures]


def test_pictures_share_batches_without_a_trace(model: VARSR) -> None:
    sizes = ((40, 52), (32, 32), (60, 33))
    together = latents(model, [tiled(model, i, size) for i, size in enumerate(sizes)], BatchSize(4))
    for i, size in enumerate(sizes):
        alone = latents(model, [tiled(model, i, size)], BatchSize(1))[0]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=0)


def test_running_out_of_memory_halves_the_batch(model: VARSR, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = latents(model, [tiled(model, 0, (60, 60))], BatchSize(2))[0]
    tried, original = [], VARSR.generate_latent

    def small_memory(self: VARSR, lr: torch.Tensor, **options: object) -> torch.Tensor:
        tried.append(len(lr))
        if len(lr) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, lr, **options)
    monkeypatch.setattr(VARSR, "generate_latent", small_memory)
    batch = BatchSize(8)
    torch.testing.assert_close(latents(model, [tiled(model, 0, (60, 60))], batch)[0], expected, atol=1e-4, rtol=0)
    assert batch.size == 2 and tried[:3] == [8, 4, 2] and max(tried[2:]) == 2


def test_a_single_window_that_does_not_fit_raises(model: VARSR, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: VARSR, lr: torch.Tensor, **options: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(VARSR, "generate_latent", no_memory)
    with pytest.raises(RuntimeError, match="allocate"):
        latents(model, [tiled(model, 0, (40, 40))], BatchSize(4))


GPU = torch.device("cuda")  # `ahead` itself touches no device


def test_items_are_made_ahead_for_a_gpu_and_one_by_one_for_a_cpu() -> None:
    for device, made_before_the_second in ((GPU, 4), (torch.device("cpu"), 2)):
        made: list[int] = []
        items = ahead((made.append(i) or i for i in range(9)), device, depth=3)
        assert [next(items), next(items)] == [0, 1]
        deadline = time.monotonic() + 10
        while len(made) < made_before_the_second and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(made) >= made_before_the_second and len(made) <= (5 if device is GPU else 2)
        assert [*items] == list(range(2, 9)) and made == list(range(9))


def test_what_breaks_ahead_breaks_where_it_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")
    coming = ahead(items(), GPU, depth=5)
    assert next(coming) == 1
    with pytest.raises(ValueError, match="no more"):
        next(coming)


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    coming = ahead(iter(range(10 ** 9)), GPU, depth=2)
    assert next(coming) == 0 and threading.active_count() == before + 1
    coming.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("color_fix", ["wavelet", "adain"])
def test_a_picture_made_ahead_is_the_same(model: VARSR, monkeypatch: pytest.MonkeyPatch, color_fix: str) -> None:
    lr = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(3))
    settings = dataclasses.replace(SETTINGS, color_fix=color_fix, batch_size=3)
    expected = restore(model, lr, settings)
    for module in (generate, render):
        monkeypatch.setattr(module, "ahead", lambda items, _, depth: ahead(items, GPU, depth))
    assert torch.equal(restore(model, lr, settings), expected)


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and is_out_of_memory(torch.OutOfMemoryError())
    for words in ("CUDA error: out of memory\nCUDA kernel errors might be ...", "FIND was unable to find an engine to "
                  "execute this computation", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"):
        assert is_out_of_memory(RuntimeError(words))


def test_the_automatic_batch_fits_the_memory(model: VARSR, monkeypatch: pytest.MonkeyPatch) -> None:
    assert automatic_batch_size(model, guided=True).size > 1
    monkeypatch.setattr("inference.generate.free_memory", lambda device: 4 * window_bytes(model, guided=True))
    assert automatic_batch_size(model, guided=True).size == 2
    monkeypatch.setattr("inference.generate.free_memory", lambda device: 0)
    assert automatic_batch_size(model, guided=True).size == 1


def test_free_memory_is_read_from_the_system(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert free_memory(torch.device("cpu"), tmp_path / "meminfo") == 2 * 2 ** 20


def test_latents_in_a_file_survive(tmp_path: Path) -> None:
    values = torch.randn(3, 2, 4, 4)
    store = FileLatents(tmp_path / "latents", 3, (2, 4, 4))
    store[2], store[0] = values[2], values[0]
    store.close()
    again = FileLatents(tmp_path / "latents", 3, (2, 4, 4))
    assert [i in again for i in range(3)] == [True, False, True] and again.done.missing() == [1]
    assert torch.equal(again[2], values[2]) and torch.equal(again[0], values[0])
    with pytest.raises(FileNotFoundError):
        again[1]
    again.close()


def test_flags_of_two_writers_add_up(tmp_path: Path) -> None:
    one, other = Flags(tmp_path / "flags", 5), Flags(tmp_path / "flags", 5)
    one.set(1)
    other.set(4)
    assert one.missing() == other.missing() == [0, 2, 3]
    one.close(), other.close()
