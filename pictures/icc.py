"""Colour profiles: is one usable, is it sRGB in effect, and pixels from it to sRGB and back."""
from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageCms

from .formats import FORMATS, INTERPRETATIONS, vips

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
    return _transformed(pixels, icc, _srgb())[:, :, :1 if pixels.shape[2] == 1 else 3]


def from_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Pixels (h, w, c) of sRGB, uint8 or uint16, as those of a gray or RGB profile."""
    channels = pixels.shape[2]
    rgb = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
    return _transformed(rgb, icc=_srgb(), target=icc)[:, :, :channels]


@cache
def _srgb() -> bytes:
    """The exact curve; the profile that is part of libvips has a coarse one, ten levels off in the shadows."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _transformed(pixels: np.ndarray, icc: bytes, target: bytes) -> np.ndarray:
    """Pixels from one profile to another of any channels: relative colorimetric, black points matched."""
    height, width, channels = pixels.shape
    kind = "cmyk" if channels == 4 else INTERPRETATIONS[pixels.dtype][channels]
    picture = vips().Image.new_from_memory(np.ascontiguousarray(pixels), width, height, channels,
                                           FORMATS[pixels.dtype]).copy(interpretation=kind)
    with tempfile.TemporaryDirectory() as folder:  # libvips takes profiles by file name
        source_file, target_file = Path(folder, "source.icc"), Path(folder, "target.icc")
        source_file.write_bytes(icc)
        target_file.write_bytes(target)
        options = {"intent": "relative", "black_point_compensation": True}
        gray = 1 in (profile_channels(icc), profile_channels(target))
        if pixels.dtype == np.uint8 and not gray:
            converted = picture.icc_transform(str(target_file), input_profile=str(source_file), depth=8, **options)
        else:
            # In one step Little CMS would take a coarse table of colours: off by up to 8 % of the range in dark tones.
            # By way of floats in XYZ or Lab it stays within 0.5 %; gray needs XYZ for that.
            options["pcs"] = "xyz" if gray else "lab"
            converted = picture.icc_import(input_profile=str(source_file), **options).icc_export(
                output_profile=str(target_file), depth=8 * pixels.itemsize, **options)
        return converted.numpy().reshape(height, width, -1)
