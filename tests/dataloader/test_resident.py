"""Crops that are cut on a device are those that a host cuts."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EVERY_DEVICE, noise_picture
from PIL import ImageFilter

from dataloader.pairs import BatchLoader, WithNegatives
from dataloader.photo_crops import PhotoCrops
from dataloader.resident import ResidentCrops, ResidentLoader
from models.config import HIGH_QUALITY, LOW_QUALITY
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Sharp noise, blurred noise, and one with both: many crops are drawn anew."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    noise_picture(150, 210, 1).save(folder / "sharp.png")
    noise_picture(180, 120, 2).filter(ImageFilter.GaussianBlur(3)).save(folder / "soft.png")
    half = noise_picture(260, 200, 3)
    half.paste(half.filter(ImageFilter.GaussianBlur(2)).crop((0, 0, 100, 260)), (0, 0))
    half.save(folder / "both.png")
    return folder


@pytest.mark.parametrize("device", EVERY_DEVICE, indirect=True)
@pytest.mark.parametrize("settings", [
    {}, {"symmetries": 1}, {"flat_probability": 0.0, "min_sharpness": 0.45}, {"level_weights": (0.5, 0.0, 0.5)},
    {"min_detail": 0.0, "min_sharpness": 0.0}, {"min_sharpness": 2.0, "flat_probability": 0.0}])
def test_every_crop_is_that_of_the_host(photographs: Path, settings: dict, device: torch.device) -> None:
    crops = PhotoCrops(photographs, 24, **settings)
    pixels, labels = ResidentCrops(crops, device).batch(range(40, 240), seed=7)
    expected = np.stack([crops.sample(position, 7)[0] for position in range(40, 240)])
    same = (pixels.cpu().numpy() == expected).all(axis=(1, 2, 3))
    assert same.mean() >= 0.99  # detail may lie at the very limit
    assert pixels.dtype == torch.uint8 and pixels.device.type == device.type
    assert (labels == HIGH_QUALITY).all()


def test_batches_ranks_and_resumes_are_those_of_the_host(photographs: Path) -> None:
    crops = PhotoCrops(photographs, 24)
    both = [kind(source, 6, seed=3, rank=1, ranks=2) for kind, source in
            ((BatchLoader, crops), (ResidentLoader, ResidentCrops(crops, CPU)))]
    for _ in range(3):
        (host, host_labels), (device, device_labels) = (next(loader) for loader in both)
        assert torch.equal(host, device) and torch.equal(host_labels, device_labels)
        assert host.stride() == device.stride()
    again = ResidentLoader(ResidentCrops(crops, CPU), 6, seed=3, rank=1, ranks=2)
    again.load_state_dict(both[1].state_dict())
    assert torch.equal(next(again)[0], next(both[0])[0])


@pytest.mark.parametrize("own_pictures", [False, True])
def test_low_quality_samples_are_those_of_the_host(photographs: Path, tmp_path: Path, own_pictures: bool) -> None:
    (tmp_path / "bad").mkdir()
    noise_picture(90, 90, 9).save(tmp_path / "bad" / "a.png")
    crops, bad = PhotoCrops(photographs, 24), PhotoCrops(tmp_path / "bad", 24)
    host = WithNegatives(crops, 0.4, bad if own_pictures else None)
    device = WithNegatives(ResidentCrops(crops, CPU), 0.4, ResidentCrops(bad, CPU) if own_pictures else None)
    pixels, labels = device.batch(range(50), seed=1)
    expected = [host.sample(position, 1) for position in range(50)]
    assert labels.tolist() == [label for _, label in expected] and {HIGH_QUALITY, LOW_QUALITY} == set(labels.tolist())
    assert np.array_equal(pixels.numpy(), np.stack([crop for crop, _ in expected]))


def test_no_room_is_said_with_a_remedy(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = PhotoCrops(photographs, 24)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UserError, match="leave out --data_on_device"):
        ResidentCrops(crops, CPU)
