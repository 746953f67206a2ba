"""Muon for convolutions against PyTorch's for matrices; which weights it trains; steps of several optimisers."""
from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from models.branches import FaithfulBranch
from models.config import PRESETS
from training.optim import ConvMuon, clipped_step, hybrid_optimizers, set_rates

RATE, DECAY = 0.02, 0.1


def gradient(shape: torch.Size, step: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def branch() -> FaithfulBranch:
    torch.manual_seed(0)
    return FaithfulBranch(dataclasses.replace(PRESETS["varsr-tiny"].vqvae, faithful_width=8, faithful_blocks=2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_trained_as_its_matrix(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=layout))
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    ours = ConvMuon([weight], RATE, DECAY)
    theirs = torch.optim.Muon([matrix], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step, rate in enumerate((RATE, RATE, RATE / 2)):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradient(weight.shape, step)
        matrix.grad = weight.grad.flatten(1).clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(weight.flatten(1), matrix)
    assert weight.is_contiguous(memory_format=layout)


def test_it_goes_on_from_its_state_and_from_weights_that_were_replaced() -> None:
    weights = [nn.Parameter(torch.randn(4, 2, 3, 3)) for _ in range(2)]
    first = ConvMuon(weights, RATE, DECAY)
    for weight in weights:
        weight.grad = gradient(weight.shape, 0)
    first.step()
    others = [nn.Parameter(torch.zeros_like(weight)) for weight in weights]
    second = ConvMuon(others, RATE, DECAY)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for mine, theirs in zip(others, weights):
        mine.data.copy_(theirs)
        mine.grad = theirs.grad = gradient(mine.shape, 1)
    first.step()
    second.step()
    for mine, theirs in zip(others, weights):
        torch.testing.assert_close(mine, theirs, atol=0, rtol=0)
    wider = ConvMuon([nn.Parameter(torch.zeros(9, 9, 3, 3)) for _ in weights], RATE, DECAY)
    with pytest.raises(ValueError):
        wider.load_state_dict(first.state_dict())


def test_every_weight_is_trained_once_and_muon_takes_those_between_features() -> None:
    network = branch()
    optimizers = hybrid_optimizers(network, network.hidden_weights(), RATE, DECAY, (0.9, 0.99))
    trained = [[id(weight) for group in each.param_groups for weight in group["params"]] for each in optimizers]
    names = {id(weight): name for name, weight in network.named_parameters()}
    assert sorted(trained[0] + trained[1]) == sorted(names)
    by_muon = {names[each] for each in trained[1]}
    assert all(name.endswith(".weight") for name in by_muon) and "blocks.1.conv2.weight" in by_muon
    assert not by_muon & {"conv_in.weight", "conv_out.weight"}
    for optimizer in optimizers:
        set_rates(optimizer, 0.5, 0.25)
        assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    assert optimizers[1].param_groups[0]["weight_decay"] == 0.25


@pytest.mark.parametrize("broken", [False, True])
def test_one_norm_clips_the_gradients_of_all(broken: bool) -> None:
    network = branch()
    optimizers = hybrid_optimizers(network, network.hidden_weights(), RATE, 0.0, (0.9, 0.99))
    before = copy.deepcopy(network.state_dict())
    for step, weight in enumerate(network.parameters()):
        weight.grad = gradient(weight.shape, step)
    if broken:
        network.conv_out.bias.grad[0] = float("nan")
    expected = torch.cat([weight.grad.flatten() for weight in network.parameters()]).norm()
    norm = clipped_step(optimizers, network.parameters(), 1.0)
    assert broken or norm == pytest.approx(expected.item(), rel=1e-5)
    assert all(weight.grad is None for weight in network.parameters())
    changed = [not torch.equal(value, before[name]) for name, value in network.state_dict().items()]
    assert not any(changed) if broken else all(changed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scaler_leaves_out_the_step_of_all(value: float) -> None:
    network = branch()
    optimizers = hybrid_optimizers(network, network.hidden_weights(), RATE, 0.1, (0.9, 0.99))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(network.state_dict())
    scaler.scale(sum(weight.sum() for weight in network.parameters())).backward()
    network.conv_out.bias.grad[0] = value  # of AdamW's
    clipped_step(optimizers, network.parameters(), 1.0, scaler)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert scaler.get_scale() == 4.0 and not any(each.state for each in optimizers[:1])
    scaler.scale(sum(weight.sum() for weight in network.parameters())).backward()
    clipped_step(optimizers, network.parameters(), 1.0, scaler)
    assert not any(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_an_older_pytorch_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"PyTorch 2\.9"):
        ConvMuon([nn.Parameter(torch.zeros(2, 2, 3, 3))], RATE, DECAY)
