"""The discriminator's part in decoder training: its weight, its loss, who learns from which."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.adversary import (
    Adversary,
    AdversarySettings,
    Discriminators,
    Seen,
    adaptive_weight,
    generator_loss,
    hinge_loss,
)
from training.flags import ADVERSARIES, BOTH, PATCH, PROJECTED

CPU = torch.device("cpu")
CHANNELS = (3, 12)  # of what stands for feature maps here


def adversary(conditional: bool = False, kind: str = PATCH, weight: float = 0.5) -> Adversary:
    torch.manual_seed(0)
    settings = AdversarySettings(weight=weight, start=10, learning_rate=2e-3, precision="fp32")
    return Adversary(settings, Discriminators(kind, CHANNELS, conditional), CPU)


def look(pictures: Tensor) -> Seen:
    """Pictures with two maps made of their pixels."""
    return Seen(pictures, [pictures, torch.nn.functional.pixel_unshuffle(pictures, 2)])


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
    added = judge.balanced_loss(own, Seen(decoded), None, last_layer.weight, metrics)
    own_pull, = torch.autograd.grad(own, last_layer.weight, retain_graph=True)
    added_pull, = torch.autograd.grad(added, last_layer.weight)
    assert added_pull.norm().item() == pytest.approx(judge.settings.weight * own_pull.norm().item(), rel=1e-2)
    assert metrics["adaptive_weight"] > 0
    assert all(parameter.grad is None for parameter in judge.discriminators.parameters())


def test_the_hinge_loss_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    first = 0.5 * ((0 + 1) / 2 + (0 + 2) / 2)
    assert hinge_loss([real], [fake]).item() == pytest.approx(first)
    sure = torch.tensor([2.0]), torch.tensor([-2.0])
    assert hinge_loss([real, sure[0]], [fake, sure[1]]).item() == pytest.approx(first / 2)  # the mean of both
    assert generator_loss([fake, torch.tensor([4.0])], [1.0, 0.25]).item() == pytest.approx(-(-1 + 4 / 4))


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("kind", ADVERSARIES)
def test_it_learns_to_tell_noise_from_flat_pictures(kind: str, conditional: bool) -> None:
    judge = adversary(conditional, kind)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(24):
        real = torch.rand(4, 1, 1, 1, generator=generator).expand(4, 3, 16, 16)
        fake = real + 0.5 * torch.randn(4, 3, 16, 16, generator=generator)
        condition = look(real) if conditional else None
        losses.append(judge.step(look(fake.requires_grad_()), look(real), condition, rate=1.0))
    assert losses[-1] < 0.5 * losses[0] and fake.grad is None


def test_who_judges() -> None:
    seen = look(torch.rand(2, 3, 16, 16))
    assert [len(Discriminators(kind, CHANNELS, False)(seen)) for kind in (PATCH, PROJECTED, BOTH)] == [1, 2, 3]
    judges = Discriminators(BOTH, CHANNELS, False)
    assert judges.weights == [1, 1 / 3, 1] and Discriminators(PATCH, (), False).weights == [1]
    logits = judges(seen)
    assert [tuple(each.shape[2:]) for each in logits] == [(16, 16), (8, 8), (2, 2)]
    with pytest.raises(ValueError, match="choose one of patch, projected, both"):
        Discriminators("all", CHANNELS, False)


def test_projected_discriminators_see_the_lr_picture() -> None:
    torch.manual_seed(0)
    judges = Discriminators(PROJECTED, CHANNELS, True).eval()
    seen, one, other = (look(torch.rand(1, 3, 16, 16)) for _ in range(3))
    for a, b in zip(judges(seen, one), judges(seen, other), strict=True):
        assert (a - b).abs().max() > 0


def test_the_drawn_picture_gets_gradients_and_discriminators_none() -> None:
    judge = adversary(kind=BOTH)
    fake, metrics = torch.rand(1, 3, 16, 16, requires_grad=True), {}
    judge.loss(look(fake), None, metrics).backward()
    assert fake.grad.abs().sum() > 0 and "adversarial" in metrics
    assert all(parameter.grad is None for parameter in judge.discriminators.parameters())


def test_the_warm_up() -> None:
    judge = adversary()
    assert not judge.takes_part(9) and judge.takes_part(10)
    assert not adversary(weight=0.0).takes_part(10)
