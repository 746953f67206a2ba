"""Recorded generations and compiled models against plain ones. A stand-in records where there is no GPU;
tests/gpu/test_speed_paths.py has real recordings."""
from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext

import pytest
import torch
from conftest import small_class_model, small_model
from graph_recorder import Recorder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.config import GenerationConfig
from models.fastvar import FastVARConfig
from models.speed.graphs import MAX_GRAPHS, GenerationGraphs, Run, compile_model
from models.varsr import VARSR, RefinerNoise

GREEDY = GenerationConfig(cfg=2.0, cfg_from_scale=1)
SAMPLED = GenerationConfig(cfg=1.0, top_k=8, top_p=0.9)
SMOOTH = GenerationConfig(cfg=1.0, top_k=0, more_smooth=True)
PRUNED = FastVARConfig({4: 0.5}, later_layer_start=0, min_keep=1)


def recording_model(recorder: Recorder) -> VARSR:
    """The same random model as the fixture's, with recorded generations."""
    model = small_model()
    model.graphs = GenerationGraphs(recorder)
    return model


@pytest.mark.parametrize(("options", "fastvar"), [(GREEDY, None), (SAMPLED, None), (SMOOTH, None), (SAMPLED, PRUNED)])
def test_replays_give_what_plain_generations_do(model: VARSR, pictures: torch.Tensor, options: GenerationConfig,
                                                fastvar: FastVARConfig | None) -> None:
    recorder = Recorder()
    recorded = recording_model(recorder)
    for seed, lr in ((0, pictures), (5, pictures.flip(0)), (0, 1 - pictures)):
        expected = model.generate_latent(lr, options=options, seed=seed, fastvar=fastvar)
        assert torch.equal(recorded.generate_latent(lr, options=options, seed=seed, fastvar=fastvar), expected)
    assert recorder.recordings == 1 and recorder.replays == 3  # the check after recording, and two generations


def test_the_callers_refiner_noise_is_an_input(model: VARSR, pictures: torch.Tensor) -> None:
    recorded = recording_model(Recorder())
    side, channels = model.config.vqvae.side, model.config.vqvae.latent_channels
    for seed in (0, 1):
        numbers = torch.randn(4, 3, side * side, channels, generator=torch.Generator().manual_seed(seed))
        noise = RefinerNoise(numbers[0], numbers[1:])
        assert torch.equal(recorded.generate_latent(pictures, refiner_noise=noise),
                           model.generate_latent(pictures, refiner_noise=noise))


def test_classes_are_inputs() -> None:
    plain, recorded = small_class_model(), small_class_model()
    recorded.graphs = GenerationGraphs(Recorder())
    for labels in (torch.tensor([0, 1]), torch.tensor([2, 0])):
        assert torch.equal(recorded.generate_latent(labels=labels), plain.generate_latent(labels=labels))


def test_results_are_not_overwritten_by_later_ones(pictures: torch.Tensor) -> None:
    recorded = recording_model(Recorder())
    results = [recorded.generate_latent(pictures, seed=seed, options=SAMPLED) for seed in (0, 1, 0)]
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_the_latest_used_kinds_are_kept(pictures: torch.Tensor) -> None:
    recorder = Recorder()
    recorded = recording_model(recorder)
    for batch in (1, 2, 1, 3):  # two pictures at a time are the oldest when three come
        recorded.generate_latent(pictures[:batch])
    assert recorder.recordings == 3 and len(recorded.graphs.recorded) == MAX_GRAPHS
    recorded.generate_latent(pictures[:1])
    assert recorder.recordings == 3
    recorded.generate_latent(pictures[:1], options=SAMPLED)
    assert recorder.recordings == 4


def test_watched_generations_are_not_recorded(model: VARSR, pictures: torch.Tensor) -> None:
    recorder, steps = Recorder(), []
    recording_model(recorder).generate_latent(pictures, on_scale=steps.append)
    assert recorder.recordings == 0 and len(steps) == len(model.config.vqvae.scales)


@pytest.mark.parametrize("recorder", [Recorder(RuntimeError("operation not permitted")), Recorder(spoil=1.0)])
def test_what_cannot_be_recorded_right_is_computed_and_told(model: VARSR, pictures: torch.Tensor, recorder: Recorder,
                                                            caplog: pytest.LogCaptureFixture) -> None:
    recorded = recording_model(recorder)
    with caplog.at_level(logging.WARNING):
        for seed in (0, 1):
            expected = model.generate_latent(pictures, seed=seed)
            assert torch.equal(recorded.generate_latent(pictures, seed=seed), expected)
    assert recorder.recordings == 1 and len(caplog.records) == 1
    assert "without a CUDA graph" in caplog.text


def test_running_out_of_memory_is_the_callers_to_handle(pictures: torch.Tensor) -> None:
    recorded = recording_model(Recorder(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        recorded.generate_latent(pictures)
    assert not recorded.graphs.recorded


class Transfers(TorchDispatchMode):
    """Notes the operations between the host and a device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.operations.append(str(func))
        return result


@pytest.mark.parametrize(("options", "fastvar"), [(GREEDY, None), (SAMPLED, PRUNED)])
def test_what_is_recorded_stays_on_the_device(pictures: torch.Tensor, options: GenerationConfig,
                                              fastvar: FastVARConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph would repeat a copy from the host with what the host's memory holds by then."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # knows no meta device
    model, seen = small_model().to("meta"), Transfers()

    def capture(run: Run) -> Run:
        with seen:
            run()
        raise RuntimeError("seen enough")
    model.graphs = GenerationGraphs(capture)
    model.generate_latent(pictures.to("meta"), options=options, fastvar=fastvar)
    assert seen.operations == []
    (kept,) = model.graphs.recorded.values()
    assert not kept.inputs and kept.noise is None, "what is not replayed needs no operands"


@pytest.mark.slow
def test_a_compiled_model_generates_the_same(model: VARSR, pictures: torch.Tensor) -> None:
    from torch._dynamo.utils import counters
    compiled, before = compile_model(small_model().for_inference()), counters["stats"]["unique_graphs"]
    for options, fastvar in ((GREEDY, None), (dataclasses.replace(GREEDY, cfg=0.0), PRUNED)):
        expected = model.generate(pictures, options=options, fastvar=fastvar)
        torch.testing.assert_close(compiled.generate(pictures, options=options, fastvar=fastvar), expected,
                                   atol=1e-3, rtol=0)
    assert counters["stats"]["unique_graphs"] > before, "nothing was compiled"
