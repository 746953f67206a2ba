"""LPIPS where its weights are, a reason where they are not, and never a download."""
from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from utils import perceptual
from utils.perceptual import find_perceptual

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
    torch.save(torchvision.models.squeezenet1_1().state_dict(), cache / "squeezenet1_1-b8a52dc0.pth")
    loss = find_perceptual(CPU)
    assert loss.description == "LPIPS (squeezenet1_1)"
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    a.requires_grad_()
    value = loss(a, b)
    assert value.item() == pytest.approx(lpips.LPIPS(net="squeeze", verbose=False)(a, b).mean().item(), rel=1e-5)
    value.backward()
    assert a.grad.abs().sum() > 0 and not any(p.requires_grad for p in loss.network.parameters())
    assert loss(b, b).item() == 0 < value.item()


def test_none_and_the_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lpips", reason="NOTICE: no LPIPS test without the lpips package")
    loss = find_perceptual(CPU)
    assert loss.network is None and str(cache) in loss.description and "vgg16" in loss.description
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    assert "pip install lpips" in find_perceptual(CPU).description and "\n" not in find_perceptual(CPU).description
