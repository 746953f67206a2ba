"""The discriminator's part in decoder training: its weight, its loss, who learns from which."""
from __future__ import annotations

import pytest
import torch

from models.discriminator import adaptive_weight, hinge_loss
from utils.adversary import Adversary, AdversarySettings

CPU = torch.device("cpu")


def adversary(conditional: bool = False) -> Adversary:
    torch.manual_seed(0)
    return Adversary(AdversarySettings(weight=0.5, start=10, learning_rate=2e-3, precision="fp32"), CPU, conditional)


def test_the_adaptive_weight_by_hand() -> None:
    """Of a.w and b.w the gradients at w are a and b."""
    a, b, w = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), torch.randn(2, requires_grad=True)
    weight = adaptive_weight((a * w).sum(), (b * w).sum(), w)
    assert weight.item() == pytest.approx(5 / (2 + 1e-4)) and not weight.requires_grad
    assert adaptive_weight((a * w).sum(), (0 * w).sum(), w, bound=7.0).item() == 7  # where the adversary says nothing


def test_both_losses_pull_alike_at_the_last_layer() -> None:
    judge = adversary()
    last_layer = torch.nn.Conv2d(4, 3, 3, padding=1)
    features, target = torch.randn(2, 4, 16, 16), torch.rand(2, 3, 16, 16)
    decoded = last_layer(features)
    own, metrics = (decoded - target).square().mean(), {}
    added = judge.loss(own, decoded, last_layer.weight, None, metrics)
    own_pull, = torch.autograd.grad(own, last_layer.weight, retain_graph=True)
    added_pull, = torch.autograd.grad(added, last_layer.weight)
    assert added_pull.norm().item() == pytest.approx(judge.settings.weight * own_pull.norm().item(), rel=1e-2)
    assert metrics["adaptive_weight"] > 0
    assert all(parameter.grad is None for parameter in judge.discriminator.parameters())


def test_the_hinge_loss_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 1) / 2 + (0 + 2) / 2))


@pytest.mark.parametrize("conditional", [False, True])
def test_it_learns_to_tell_noise_from_flat_pictures(conditional: bool) -> None:
    judge = adversary(conditional)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(24):
        real = torch.rand(4, 1, 1, 1, generator=generator).expand(4, 3, 16, 16)
        fake = real + 0.5 * torch.randn(4, 3, 16, 16, generator=generator)
        losses.append(judge.step(fake.requires_grad_(), real, real if conditional else None, rate=1.0))
    assert losses[-1] < 0.5 * losses[0]


def test_the_warm_up() -> None:
    judge = adversary()
    assert not judge.takes_part(9) and judge.takes_part(10)
    without = Adversary(AdversarySettings(weight=0.0, start=0), CPU, conditional=False)
    assert not without.takes_part(10)
