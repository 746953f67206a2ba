"""Windows in batches: mixed pictures, memory that runs out, stores in memory and in files."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference.generate import (
    BatchSize,
    automatic_batch_size,
    free_memory,
    generate_windows,
    is_out_of_memory,
    window_bytes,
)
from inference.large import FileLatents, Flags
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
    tried, generate = [], VARSR.generate_latent

    def small_memory(self: VARSR, lr: torch.Tensor, **options: object) -> torch.Tensor:
        tried.append(len(lr))
        if len(lr) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, lr, **options)
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


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and is_out_of_memory(torch.OutOfMemoryError())


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
