"""LPIPS where its weights are, else ST-LPIPS, else feature maps, a reason where none is to be had; no download."""
from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.metrics.efficientnet import NoFeatures, packaged_weights
from evaluation.metrics.st_lpips import STLPIPS, VGG16, find_weights
from training import perceptual
from training.perceptual import Perceptual, find_perceptual

CPU = torch.device("cpu")


@pytest.fixture()
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache, and no network."""
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_with_a_network_from_the_cache(cache: Path) -> None:
    lpips = pytest.importorskip("lpips", reason="NOTICE: no LPIPS test without the lpips package")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in torchvision.models.vgg16().state_dict().items()}
    torch.save({name: torch.zeros(()).expand(shape) if name.startswith("classifier")  # no judge needs those 124 million
                else torch.randn(shape) / shape[1:].numel() ** 0.5 for name, shape in shapes.items()},
               cache / "vgg16-397923af.pth")
    loss = find_perceptual(CPU)
    assert loss.description == "LPIPS (vgg16)"
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    a.requires_grad_()
    value = loss.distance(loss.look(a), loss.look(b))
    assert value.item() == pytest.approx(lpips.LPIPS(net="vgg", verbose=False)(a, b).mean().item(), rel=1e-5)
    value.backward()
    assert a.grad.abs().sum() > 0 and not any(p.requires_grad for p in loss.judge.parameters())
    assert loss.distance(loss.look(b), loss.look(b)).item() == 0 < value.item()


@pytest.mark.skipif(find_weights(VGG16) is None, reason="ST-LPIPS' weights are not installed")
def test_st_lpips_without_lpips_network(cache: Path) -> None:
    for other in ("alexnet-owt-7be5be79.pth", "squeezenet1_1-b8a52dc0.pth"):  # of metrics: no judge
        (cache / other).touch()
    found = find_perceptual(CPU)
    assert found.description == "ST-LPIPS (VGG16)"
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen = [found.look(each * 2 - 1) for each in (a, b)]
    expected = STLPIPS(find_weights(VGG16), VGG16)(a, b).mean()
    torch.testing.assert_close(found.distance(*seen), expected)
    torch.testing.assert_close(found.judged(*seen, side=100), expected)  # larger than the pictures


def test_the_judge_may_see_a_random_part() -> None:
    seen_sides = []

    class Judge(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            seen_sides.append(tuple(a.shape[-2:]))
            assert torch.equal(a, b)  # the same part of both
            return a.mean((1, 2, 3))
    eyes, picture = Perceptual(judge=Judge()), torch.rand(2, 3, 24, 40)
    seen, generator = eyes.look(picture), torch.Generator().manual_seed(0)
    values = {eyes.judged(seen, seen, 16, generator).item() for _ in range(8)}
    assert seen_sides == [(16, 16)] * 8 and len(values) > 4
    assert eyes.judged(seen, seen, 32).item() != eyes.judged(seen, seen).item() == pytest.approx(picture.mean().item())
    assert seen_sides[-2:] == [(24, 32), (24, 40)]


@pytest.mark.skipif(packaged_weights() is None, reason="the network is not installed")
def test_feature_maps_without_a_judge(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "find_weights", lambda _: None)
    found = find_perceptual(CPU)
    assert found.exists and found.judge is None and "EfficientNet" in found.description
    assert found.channels == (16, 24, 40, 112)
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found.calibrate(b)
    a.requires_grad_()
    value = found.distance(found.look(a), found.look(b))
    value.backward()
    assert value > 0 and a.grad.abs().sum() > 0


def test_none_and_the_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: torch.device) -> None:
        raise NoFeatures("no weights here")
    monkeypatch.setattr(perceptual, "load_features", missing)
    monkeypatch.setattr(perceptual, "find_weights", lambda _: None)
    found = find_perceptual(CPU)
    assert not found.exists and found.channels == () and "no weights here" in found.description
    picture = torch.rand(1, 3, 32, 32)
    assert found.look(picture).picture is picture and not found.look(picture).maps
    found.calibrate(picture)  # nothing to do
    assert not Perceptual().exists
