"""The JPEG simulation against Pillow's libjpeg."""
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloader.jpeg import CHROMINANCE, LUMINANCE, jpeg, quantization_tables

SAMPLES = sorted((Path(__file__).parents[2] / "testset" / "sample" / "HR").glob("*.png"))
QUALITIES = st.integers(60, 95)


def photograph(top: int, left: int, height: int = 64, width: int = 80) -> torch.Tensor:
    """A part of a photograph of the sample set: (1, 3, H, W) in [0, 1]."""
    file = Path(__file__).parents[2] / "testset/sample/HR/coffee.png"
    pixels = np.asarray(Image.open(file))[top:top + height, left:left + width]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def through_pillow(image: torch.Tensor, quality: int) -> tuple[np.ndarray, Image.Image]:
    """Levels after Pillow's JPEG, and the decoded file (with its tables)."""
    levels = image.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality)
    decoded = Image.open(buffer)
    return np.asarray(decoded.convert("RGB")).astype(float), decoded


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 95, 100])
@pytest.mark.parametrize("size", [(64, 80), (53, 71)])
def test_jpeg_is_close_to_pillow(quality, size):
    image = photograph(180, 380, *size)
    expected, decoded = through_pillow(image[0], quality)
    result = jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
    error = np.abs(result - expected).mean()
    loss = np.abs(image[0].permute(1, 2, 0).numpy() * 255 - expected).mean()
    assert error < 1 and error < 0.5 * loss
    for table, base in ((decoded.quantization[0], LUMINANCE), (decoded.quantization[1], CHROMINANCE)):
        ours = quantization_tables(base, torch.tensor([float(quality)]))[0]
        assert ours.flatten().int().tolist() == list(table)


def test_jpeg_quality_is_per_sample():
    images = photograph(180, 380).expand(3, -1, -1, -1)
    together = jpeg(images, torch.tensor([60.0, 80.0, 95.0]))
    for image, quality, result in zip(images, (60.0, 80.0, 95.0), together):
        torch.testing.assert_close(result, jpeg(image[None], torch.tensor([quality]))[0])


@settings(max_examples=60, deadline=None)
@given(file=st.sampled_from(SAMPLES), quality=QUALITIES, corner=st.tuples(st.integers(0, 200), st.integers(0, 200)),
       size=st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_any_part_of_any_picture_at_any_size_is_close_to_pillow(file, quality, corner, size):
    left, top = corner
    part = Image.open(file).convert("RGB").crop((left, top, left + size[0], top + size[1]))
    image = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None].float() / 255
    expected, _ = through_pillow(image[0], quality)
    result = jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
    # in a picture of one chroma block, a coefficient that is rounded the other way is an error of every pixel
    assert np.abs(result - expected).mean() < (2 if min(size) >= 24 else 8)


@pytest.mark.parametrize("quality", [60, 78, 95])
def test_saturated_colours_are_close_to_pillow(quality):
    """Edges between full colours: clipping, and chroma that is averaged over 2 x 2 pixels."""
    tiles = torch.randint(0, 2, (1, 3, 9, 11), generator=torch.Generator().manual_seed(quality)).float()
    image = tiles.repeat_interleave(7, 2).repeat_interleave(5, 3)
    expected, _ = through_pillow(image[0], quality)
    result = jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(result - expected).mean() < 2
