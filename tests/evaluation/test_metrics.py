"""Metrics against scikit-image, and against what pyiqa and pypiqe gave for ten pairs."""
from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_pairs import pair as damaged_pair
from pyiqa_stub import Folders, stand_in
from reference.make_metric_values import PAIRS, pyiqa_metrics
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evaluation.measure import full_reference
from evaluation.metrics.fsim import fsim
from evaluation.metrics.full_reference import (
    eight_bit,
    gmsd,
    luma,
    mean_ssim,
    ms_ssim,
    psnr,
    psnr_y,
    smooth_chroma,
    smooth_luma,
    ssim,
    ssim_y,
)
from evaluation.metrics.learned import LearnedMetrics
from evaluation.metrics.niqe import REMEDY, Pristine, find_parameters, load_parameters, mscn, niqe
from evaluation.metrics.piqe import piqe
from evaluation.protocols import FID, PROTOCOLS
from pictures.rgb import read_image

ROOT = Path(__file__).resolve().parents[2]
VALUES = json.loads((Path(__file__).parents[1] / "reference/metric_values.json").read_text())
OSEDIFF = {metric.column: metric for metric in PROTOCOLS["osediff"].metrics}  # pyiqa's own variants


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(3, 48, 64, generator=generator)
    image = (torch.nn.functional.avg_pool2d(image[None], 5, 1, 2)[0] * 255).round() / 255
    noisy = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    return (noisy * 255).round() / 255, image


def numpy_y(image: torch.Tensor) -> np.ndarray:
    return rgb2ycbcr(image.permute(1, 2, 0).double().numpy())[..., 0]


def test_luma_is_studio_range_bt601() -> None:
    image, _ = pair()
    np.testing.assert_allclose(luma(image).numpy(), numpy_y(image), atol=1e-3)


def test_chroma_is_bt601s() -> None:
    image, _ = pair()
    expected = (rgb2ycbcr(image.permute(1, 2, 0).double().numpy())[..., 1:] - 128) / 224  # studio range: 16..240
    np.testing.assert_allclose(smooth_chroma(image).permute(1, 2, 0).numpy(), expected, atol=1e-3)


def test_psnr_equals_scikit_image() -> None:
    image, reference = pair()
    expected = peak_signal_noise_ratio(numpy_y(reference), numpy_y(image), data_range=255)
    assert psnr_y(image, reference) == pytest.approx(expected, abs=1e-4)
    assert psnr_y(image, image) == math.inf


def test_ssim_equals_scikit_image() -> None:
    image, reference = pair()
    _, full = structural_similarity(numpy_y(reference), numpy_y(image), data_range=255, gaussian_weights=True,
                                    sigma=1.5, use_sample_covariance=False, full=True)
    assert ssim_y(image, reference) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)
    assert ssim_y(image, image) == pytest.approx(1.0)


def test_ssim_to_train_on_is_the_metric_with_gradients() -> None:
    pictures, references = (torch.stack(batch) for batch in zip(pair(), pair()[::-1], strict=True))
    pictures.requires_grad_()
    planes, wanted = smooth_luma(pictures), smooth_luma(references)
    similarity = mean_ssim(planes, wanted)
    expected = [ssim(one, other) for one, other in zip(planes.detach(), wanted, strict=True)]
    assert similarity.item() == pytest.approx(sum(expected) / 2, abs=1e-5)
    similarity.backward()
    with torch.no_grad():
        assert mean_ssim(smooth_luma(pictures + 0.1 * pictures.grad / pictures.grad.abs().max()), wanted) > similarity


def test_sizes_are_checked() -> None:
    image, reference = pair()
    with pytest.raises(ValueError, match="differ in size"):
        psnr_y(image[:, 1:], reference)
    with pytest.raises(ValueError, match="11x11"):
        ssim_y(image[:, :8, :8], reference[:, :8, :8])


def ours(name: str, image: torch.Tensor, reference: torch.Tensor) -> float:
    if name == "psnr":
        return psnr(eight_bit(image), eight_bit(reference))
    return full_reference(OSEDIFF[name], image, reference)


@pytest.mark.parametrize("index", range(PAIRS))
def test_ten_pairs_equal_pyiqa_and_pypiqe(index: int) -> None:
    image, reference = damaged_pair(index)
    expected = dict(VALUES[index])
    assert piqe(image) == pytest.approx(expected.pop("piqe"), abs=1e-3)
    for name, value in expected.items():
        assert ours(name, image, reference) == pytest.approx(value, abs=1e-3), name


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa is not installed: its kept values stand")
@pytest.mark.parametrize("index", range(PAIRS))
def test_ten_pairs_equal_pyiqa_live(index: int) -> None:
    image, reference = damaged_pair(index)
    for name, metric in pyiqa_metrics().items():
        expected = float(metric(image[None], reference[None]))
        assert ours(name, image, reference) == pytest.approx(expected, abs=1e-3), name


def test_protocols_differ_where_they_say_so() -> None:
    image, reference = damaged_pair(9)
    image = (image + (1 - reference)) / 2  # half a negative, so that contrasts are reversed
    values = {name: [full_reference(metric, image, reference) for metric in protocol.metrics[:2]]
              for name, protocol in PROTOCOLS.items()}
    y, y_reference = luma(image).round(), luma(reference).round()
    cut = [picture[:, 4:-4, 4:-4] for picture in (image, reference)]
    assert values["varsr-paper"] == [psnr_y(image, reference), ssim_y(image, reference)]
    assert values["basicsr-y"] == [psnr_y(*cut), ssim_y(*cut)]
    assert values["osediff"] == [psnr_y(image, reference), ssim(y, y_reference, floor=0)]
    assert ssim(y, y_reference, floor=0) > ssim(y, y_reference)


def test_equal_pictures_are_perfect() -> None:
    image, flat = damaged_pair(1)[0], torch.full((3, 64, 64), 0.5)
    assert fsim(image, image) == pytest.approx(1) and fsim(flat, flat) == 1
    assert ms_ssim(eight_bit(image), eight_bit(image)) == pytest.approx(1)
    assert gmsd(luma(image), luma(image)) == 0


def test_mscn_evens_out_contrast() -> None:
    plane = 40 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 128
    assert mscn(plane).std() == pytest.approx(1, abs=0.2) and mscn(plane / 4 + 90).std() == pytest.approx(1, abs=0.2)
    assert mscn(torch.full((16, 16), 7.0, dtype=torch.float64)).abs().max() < 1e-6


def test_flat_areas_are_on_one_side_whichever_way_rounding_goes() -> None:
    for level in (1.0, 7.0, 100.0, 255.0):
        assert mscn(torch.full((16, 16), level, dtype=torch.float64)).max() < 0


def test_piqe_of_any_size_and_of_nothing() -> None:
    assert piqe(torch.full((3, 40, 50), 0.3)) == 100
    noise = torch.rand(3, 1, 5, generator=torch.Generator().manual_seed(0))
    assert 0 <= piqe(noise) <= 100


# pyiqa 0.1.16 with the same statistics
@pytest.mark.parametrize("name, expected", [("astronaut", 3.062388), ("cat", 2.572079)])
@pytest.mark.skipif(find_parameters() is None, reason=f"NIQE's statistics are not installed: {REMEDY}")
def test_niqe_equals_pyiqa(name: str, expected: float) -> None:
    image = read_image(ROOT / f"testset/sample/HR/{name}.png")
    assert niqe(image, load_parameters(find_parameters())) == pytest.approx(expected, abs=1e-3)


def test_niqe_refuses_what_it_cannot_measure(tmp_path: Path) -> None:
    pristine = Pristine(torch.zeros(36), torch.eye(36))
    with pytest.raises(ValueError, match="two blocks"):
        niqe(torch.rand(3, 96, 120), pristine)
    with pytest.raises(ValueError, match="flat"):
        niqe(torch.full((3, 96, 192), 0.5), pristine)
    (tmp_path / "x.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="x.npz"):
        load_parameters(tmp_path / "x.npz")


def test_niqe_tells_noise_from_a_photograph_by_its_statistics() -> None:
    photograph = read_image(ROOT / "testset/sample/HR/cat.png")
    zero = Pristine(torch.zeros(36), torch.eye(36))
    noise = torch.rand(photograph.shape, generator=torch.Generator().manual_seed(0))
    assert abs(niqe(photograph, zero) - niqe(noise, zero)) > 1


def test_without_pyiqa_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    metrics = LearnedMetrics(torch.device("cpu"))
    assert metrics.measure(*pair()) == {} and metrics.fid([(Path("a.png"), Path("b.png"))]) is None
    assert "pyiqa" in metrics.missing["lpips"] and REMEDY in metrics.missing["niqe"]
    lines = metrics.missing_lines()
    assert len(lines) == 3 and lines[0].startswith("st_lpips") and lines[1].startswith("lpips, dists, musiq")


def test_learned_metrics_see_pictures_at_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest_rest(*pictures: torch.Tensor) -> float:
        return max((picture * 255 - (picture * 255).round()).abs().max().item() for picture in pictures)
    stand_in(monkeypatch, lpips=largest_rest, musiq=largest_rest)
    image, reference = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    values = LearnedMetrics(torch.device("cpu")).measure(image, reference)
    assert max(values["lpips"], values["musiq"]) < 1e-3 < largest_rest(image[None])


def test_fid_keeps_files_of_one_name_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other folders or of other kinds; one that belongs to two results counts once, and none has no FID."""
    fid = Folders()
    stand_in(monkeypatch, fid=fid)
    files = [tmp_path / name for name in ("x/a.png", "y/a.png", "x/a.jpg", "hr/a.png", "hr/b.png")]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))
    one, other, jpeg, original, second = files
    metrics = LearnedMetrics(torch.device("cpu"), (FID,))
    assert metrics.fid([]) is None and not fid.seen
    assert metrics.fid([(one, original), (other, second), (jpeg, original)]) == 7.5
    expected = [sorted(str(path).encode() for path in side) for side in ((one, other, jpeg), (original, second))]
    assert list(map(list, fid.seen[0])) == expected and all(path.exists() for path in files)
