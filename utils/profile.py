"""Colour profiles: is one usable, is it sRGB in effect, and pixels from it to sRGB and back."""
from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ImageCms

from .vips import FORMATS, INTERPRETATIONS, vips

CHANNELS = {"GRAY": 1, "RGB": 3, "CMYK": 4}  # colour spaces of profiles that are understood
SAMPLES = 9  # a side of the grid of colours on which a profile is compared with sRGB
TOLERANCE = 1  # levels of 8 bits


def profile_channels(icc: bytes) -> int:
    """How many channels the pixels of a profile have: 1, 3 or 4. Raises ValueError for an unusable profile."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space.strip()
    except OSError as error:
        raise ValueError("it is damaged") from error
    if space not in CHANNELS:
        raise ValueError(f"its colour space is {space}")
    return CHANNELS[space]


def is_srgb(icc: bytes) -> bool:
    """Whether a gray or RGB profile changes no colour by more than a level, so that pixels can stay as they are."""
    ramp = np.linspace(0, 255, SAMPLES).round().astype(np.uint8)
    if profile_channels(icc) == 1:
        colors = np.arange(256, dtype=np.uint8)[None, :, None]
    else:
        colors = np.stack(np.meshgrid(ramp, ramp, ramp), axis=-1).reshape(1, -1, 3)
    return int(np.abs(to_srgb(colors, icc).astype(int) - colors).max()) <= TOLERANCE


def to_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Pixels (h, w, c) of a profile, uint8 or uint16, as sRGB of the same type; CMYK becomes RGB, gray stays gray."""
    channels = pixels.shape[2]
    with _file(icc) as profile:
        converted = _picture(pixels).icc_transform("srgb", input_profile=profile, embedded=False, **_options(pixels))
        return converted.numpy()[:, :, :1 if channels == 1 else 3]


def from_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Pixels (h, w, c) of sRGB, uint8 or uint16, as those of a gray or RGB profile."""
    channels = pixels.shape[2]
    if channels == 1:  # libvips knows no gray sRGB
        pixels = np.repeat(pixels, 3, axis=2)
    with _file(icc) as profile:
        converted = _picture(pixels).icc_transform(profile, input_profile="srgb", **_options(pixels))
        return converted.numpy().reshape(*pixels.shape[:2], -1)[:, :, :channels]


def _options(pixels: np.ndarray) -> dict[str, object]:
    return {"intent": "relative", "black_point_compensation": True, "depth": 8 * pixels.dtype.itemsize}


def _picture(pixels: np.ndarray):
    height, width, channels = pixels.shape
    picture = vips().Image.new_from_memory(np.ascontiguousarray(pixels), width, height, channels,
                                           FORMATS[pixels.dtype])
    kinds = INTERPRETATIONS[pixels.dtype]
    return picture.copy(interpretation="cmyk" if channels == 4 else kinds[channels])


@contextmanager
def _file(icc: bytes) -> Iterator[str]:
    """libvips takes profiles by file name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.icc"
        path.write_bytes(icc)
        yield str(path)
