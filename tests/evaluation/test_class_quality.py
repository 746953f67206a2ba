"""Distances of features, the probe and the nearest crop against closed forms, brute force and what must hold."""
from __future__ import annotations

import pytest
import torch

from evaluation.class_quality import ClassFeatures, LinearProbe, frechet_distance, nearest
from evaluation.metrics.efficientnet import NETWORK, REMEDY, network_input, packaged_weights


def features(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing


def test_the_distance_of_one_dimension_is_the_known_one() -> None:
    """Of N(m, s²) and N(n, t²): (m - n)² + (s - t)²."""
    first, second = features(50, 1), features(80, 1, seed=1) * 3 + 2
    expected = (first.mean() - second.mean()) ** 2 + (first.std() - second.std()) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-9)


def test_the_distance_is_that_of_the_general_formula() -> None:
    """tr((A B)^½) as the sum of the roots of the eigenvalues of A B, which is not symmetric."""
    first, second = features(40), features(60, seed=1) + 0.5
    a, b = first.T.cov(), second.T.cov()
    cross = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = (first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-9)


def test_the_distance_is_symmetric_turns_with_its_space_and_is_none_from_itself() -> None:
    first, second = features(5), features(9, seed=1)  # fewer than dimensions: covariances are singular
    turn = torch.linalg.qr(features(6, seed=2))[0]
    distance = frechet_distance(first, second)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-6)
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(distance, rel=1e-6)


def test_the_probe_finds_classes_that_a_plane_separates_and_no_others() -> None:
    labels = torch.arange(3).repeat(60)
    centres = torch.tensor([[4.0, 0, 0], [0, 40, 0], [0, 0, 400]], dtype=torch.float64)
    noise = torch.randn(180, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = centres.max(0).values / 4
    probe = LinearProbe((centres[labels] + noise * scale)[:120], labels[:120])
    share = (probe.predict((centres[labels] + noise * scale)[120:]) == labels[120:]).double().mean()
    assert share > 0.9
    blind = LinearProbe(noise[:120], labels[:120])
    assert (blind.predict(noise[120:]) == labels[120:]).double().mean() < 0.7


def test_the_nearest_is_found() -> None:
    first, second = features(7), features(11, seed=1)
    places, distances = nearest(first, second)
    for row, place, distance in zip(first, places.tolist(), distances.tolist(), strict=True):
        by_hand = [(row - other).norm().item() for other in second]
        assert place == by_hand.index(min(by_hand)) and distance == pytest.approx(min(by_hand), rel=1e-6)


@pytest.mark.skipif(packaged_weights() is None, reason=f"no weights of {NETWORK}: {REMEDY}")
def test_features_are_what_the_whole_network_sees_before_its_head() -> None:
    """The whole network's last block, caught on its way to the class scores, averaged over the picture."""
    import timm
    network = timm.create_model(NETWORK, pretrained=False)
    network.load_state_dict(packaged_weights())
    seen = []
    network.eval().blocks[-1].register_forward_hook(lambda module, taken, result: seen.append(result))
    pictures = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(network_input(pictures))
    found = ClassFeatures(torch.device("cpu")).of_all(pictures.split(1))
    assert found.shape == (2, 320)
    torch.testing.assert_close(found, seen[0].mean((2, 3)).double(), atol=1e-4, rtol=1e-4)
