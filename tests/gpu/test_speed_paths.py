"""Generations recorded as CUDA graphs, and hosts that never wait. The dry run records with a stand-in, and knows what
makes a host wait by tensors without values (tests/models/test_model.py)."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import no_waiting, small_class_model, small_model
from embedded import embedded_model
from graph_recorder import Recorder

from models.config import GenerationConfig
from models.fastvar import SHARED, FastVARConfig
from models.speed.graphs import GenerationGraphs, capture_cuda
from models.speed.packed import Int8Linear, replace_linears
from models.varsr import VARSR

pytestmark = pytest.mark.gpu
GREEDY = GenerationConfig(cfg=2.0, cfg_from_scale=1)
SAMPLED = GenerationConfig(cfg=1.0, top_k=8, top_p=0.9)
SMOOTH = GenerationConfig(cfg=1.0, top_k=0, more_smooth=True)
PLAIN = GenerationConfig(cfg=0.0)
SEPARATELY = FastVARConfig({4: 0.5}, later_layer_start=0, min_keep=1)
TOGETHER = FastVARConfig({4: 0.5}, later_layer_start=0, min_keep=1, mode=SHARED)
KINDS = [(GREEDY, None), (SAMPLED, None), (SMOOTH, None), (PLAIN, None), (SAMPLED, SEPARATELY), (GREEDY, TOGETHER)]
DTYPES = [torch.float32, torch.bfloat16]


def model_on(device: torch.device, dtype: torch.dtype = torch.float32) -> VARSR:
    """The random debug model, as users' models are made ready."""
    model = small_model()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return VARSR.from_tensors(model.config, tensors, dtype, device).for_inference()


def recording(model: VARSR, device: torch.device) -> VARSR:
    """The model with CUDA graphs, without what else `compile_model` does."""
    model.graphs = GenerationGraphs(capture_cuda if device.type == "cuda" else Recorder())
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("options", "fastvar"), KINDS)
def test_replays_give_what_plain_generations_do(options: GenerationConfig, fastvar: FastVARConfig | None,
                                                dtype: torch.dtype, pictures: torch.Tensor, device: torch.device,
                                                full_precision: None,
                                                record_property: Callable[[str, object], None]) -> None:
    """With other seeds and pictures than the recorded ones, and with the recorded ones again."""
    plain, recorded, equal = model_on(device, dtype), recording(model_on(device, dtype), device), []
    for seed, lr in ((0, pictures), (5, pictures.flip(0)), (0, 1 - pictures), (0, pictures)):
        expected = plain.generate_latent(lr, options=options, seed=seed, fastvar=fastvar)
        found = recorded.generate_latent(lr, options=options, seed=seed, fastvar=fastvar)
        equal.append(torch.equal(found, expected))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    record_property("bit for bit", all(equal))
    replay, = (each.replay for each in recorded.graphs.recorded.values())
    assert replay is not None, "computed without a graph"


def test_a_graph_a_shape(pictures: torch.Tensor, device: torch.device) -> None:
    """A smaller last batch, and pictures of before after it; two graphs beside each other keep their memory apart."""
    plain, recorded = model_on(device), recording(model_on(device), device)
    for batch in (3, 1, 3, 1):
        torch.testing.assert_close(recorded.generate(pictures[:batch], options=SAMPLED, seed=batch),
                                   plain.generate(pictures[:batch], options=SAMPLED, seed=batch))
    assert all(each.replay is not None for each in recorded.graphs.recorded.values())


def test_classes_and_the_embedded_model_are_recorded(device: torch.device) -> None:
    """Parts that the debug model has not: class-to-image, injected prefixes, a detail branch."""
    plain, recorded = small_class_model().to(device), recording(small_class_model().to(device), device)
    for labels in ([0, 1], [2, 0]):
        torch.testing.assert_close(recorded.generate(labels=torch.tensor(labels)),
                                   plain.generate(labels=torch.tensor(labels)))
    plain, recorded = embedded_model(device), recording(embedded_model(device), device)
    for seed in (0, 1):
        lr = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(recorded.generate(lr, seed=seed), plain.generate(lr, seed=seed), atol=1e-3, rtol=0)


def check_host_is_free(model: VARSR, device: torch.device, repeat: int = 1, **inputs: object) -> None:
    """Once everything is loaded, a generation must not wait for the device. (A CPU repeats itself.)"""
    for _ in range(repeat):
        expected = model.generate(**inputs)
    with no_waiting(device):
        found = model.generate(**inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("options", "fastvar"), KINDS)
def test_the_host_never_waits(options: GenerationConfig, fastvar: FastVARConfig | None, dtype: torch.dtype,
                              pictures: torch.Tensor, device: torch.device) -> None:
    check_host_is_free(model_on(device, dtype), device, lr=pictures.to(device), options=options, fastvar=fastvar)


def test_the_host_never_waits_with_other_models(pictures: torch.Tensor, device: torch.device) -> None:
    """The embedded one, one of classes, one in 8 bits, one with graphs (the second generation is the first replay),
    and pictures that lie on the host."""
    check_host_is_free(embedded_model(device), device, lr=torch.rand(2, 3, 128, 128).to(device))
    check_host_is_free(small_class_model().to(device), device, labels=torch.tensor([0, 2]))
    eight = model_on(device, torch.bfloat16)
    replace_linears(eight, Int8Linear)
    check_host_is_free(eight, device, lr=pictures.to(device))
    check_host_is_free(recording(model_on(device), device), device, 2, lr=pictures.to(device), options=SAMPLED)
    check_host_is_free(model_on(device), device, lr=pictures)


def test_what_makes_a_host_wait_is_noticed(cuda: torch.device) -> None:
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting(cuda):
        torch.ones((), device=cuda).item()
