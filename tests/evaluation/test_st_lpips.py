"""ST-LPIPS against what the package whose weights it has gives for pictures that a formula draws."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluation.metrics import learned
from evaluation.metrics.full_reference import eight_bit
from evaluation.metrics.learned import LearnedMetrics
from evaluation.metrics.st_lpips import ALEXNET, REMEDY, STLPIPS, VGG16, Architecture, find_weights

# (height, width), a number of the formula, and the values of stlpips_pytorch 0.0.2: LPIPS(net="alex" and "vgg",
# variant="shift_tolerant")(a, b, normalize=True)
VALUES = [((64, 64), 0, 0.0015614416915923357, 0.007412611041218042),
          ((96, 130), 1, 0.0017738700844347477, 0.00835436675697565),
          ((33, 47), 2, 0.004127411171793938, 0.014874947257339954),
          ((128, 128), 3, 0.003167565679177642, 0.014528586529195309)]
needs_weights = pytest.mark.skipif(find_weights() is None, reason=f"ST-LPIPS' weights are not installed: {REMEDY}")


def pair(size: tuple[int, int], number: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    plain = [(x * 7 + y * 3 + channel * 50) % 97 for channel in range(3)]
    changed = [(x * 7 + y * 3 + channel * 50 + (x * y) % (5 + number)) % 97 for channel in range(3)]
    return torch.stack(plain)[None] / 96, torch.stack(changed)[None] / 96


@needs_weights
@pytest.mark.parametrize("architecture", [ALEXNET, VGG16])
@pytest.mark.parametrize(("size", "number", "alexnet", "vgg16"), VALUES)
def test_it_equals_the_package(size: tuple[int, int], number: int, alexnet: float, vgg16: float,
                               architecture: Architecture) -> None:
    metric, (a, b) = STLPIPS(find_weights(architecture), architecture), pair(size, number)
    assert metric(a, b).item() == pytest.approx(alexnet if architecture is ALEXNET else vgg16, rel=1e-4)
    assert metric(a, a).item() == 0


@needs_weights
def test_it_can_be_trained_on() -> None:
    metric, (a, b) = STLPIPS(find_weights(VGG16), VGG16), pair((64, 64), 0)
    a.requires_grad_()
    metric(a, b).sum().backward()
    with torch.no_grad():
        nearer = a - 0.003 * a.grad / a.grad.abs().max()
        assert metric(nearer, b) < metric(a, b)
    black = torch.zeros(1, 3, 64, 64, requires_grad=True)  # cells that answer nothing at all
    metric(black, b).sum().backward()
    assert black.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in metric.parameters())


@needs_weights
def test_a_value_for_each_picture() -> None:
    metric, (a, b) = STLPIPS(find_weights()), pair((64, 64), 0)
    both = metric(torch.cat([a, a]), torch.cat([b, a]))
    assert both.tolist() == pytest.approx([VALUES[0][2], 0], abs=1e-6)


@needs_weights
def test_sizes_are_checked() -> None:
    metric, (a, b) = STLPIPS(find_weights()), pair((64, 64), 0)
    with pytest.raises(ValueError, match="differ in size"):
        metric(a, b[..., 1:])
    with pytest.raises(ValueError, match="32x32"):
        metric(a[..., :31], b[..., :31])


@needs_weights
def test_it_is_a_column_of_the_results() -> None:
    """Of the pictures at 8 bits, as the others are."""
    a, b = pair((64, 64), 0)
    metrics = LearnedMetrics(torch.device("cpu"))
    expected = STLPIPS(find_weights())(*((eight_bit(each) / 255).float() for each in (a, b))).item()
    assert metrics.measure(a[0], b[0])["st_lpips"] == metrics.distance(a[0], b[0])["st_lpips"] == expected
    assert expected == pytest.approx(VALUES[0][2], rel=0.02) and expected != pytest.approx(VALUES[0][2], rel=1e-4)
    assert "st_lpips" not in metrics.measure(a[0], None)


def test_without_weights_the_column_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "find_weights", lambda: None)
    metrics = LearnedMetrics(torch.device("cpu"))
    assert REMEDY in metrics.missing["st_lpips"]
    a, b = pair((64, 64), 0)
    assert "st_lpips" not in metrics.measure(a[0], b[0])


def test_a_package_without_its_file_has_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "stlpips_pytorch"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_weights() is None
