"""Colour profiles: is one usable, is it sRGB in effect, pixels from it to sRGB and back; and profiles of what files say
of their colours without one."""
from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageCms

from .formats import FORMATS, INTERPRETATIONS, vips

CHANNELS = {"GRAY": 1, "RGB": 3, "CMYK": 4}  # colour spaces of profiles that are understood
SAMPLES = 9  # a side of the grid of colours on which a profile is compared with sRGB
TOLERANCE = 1  # levels of 8 bits

# Chromaticities (x, y) of red, green, blue and white, by the codes of ITU-T H.273, table 2.
D65 = (0.3127, 0.3290)
PRIMARIES = {1: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65),
             9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
             11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
             12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65)}
# Curves from values to light, parameters g, a, b, c, d of ICC.1:2022, 10.18, type 3; by the codes of H.273, table 3.
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
VIDEO = (1, 6, 14, 15)  # curves of cameras, whose pictures viewers show as sRGB
CURVES = {4: (2.2,), 5: (2.8,), 8: (1.0,), 13: SRGB_CURVE, **dict.fromkeys(VIDEO, SRGB_CURVE)}
HDR = {16: "PQ", 18: "HLG"}
D50 = np.array([0.9642, 1.0, 0.8249])  # the white of profiles
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
PNG_UNIT = 100_000  # of gAMA and cHRM


@dataclass(frozen=True)
class Colors:
    """What a file says of its colours without a profile: chromaticities, curve (None: not known), and in words."""

    primaries: tuple[tuple[float, float], ...] | None
    curve: tuple[float, ...] | None
    name: str
    is_hdr: bool = False

    @property
    def known(self) -> bool:
        """Whether a profile can be made of it."""
        return self.primaries is not None and self.curve is not None

    @classmethod
    def of_codes(cls, primaries: int, transfer: int) -> Colors:
        """By the codes of ITU-T H.273; 2 means that nothing is said, which is sRGB in pictures."""
        name = HDR.get(transfer, f"primaries {primaries}, transfer {transfer}")
        return cls(PRIMARIES.get(1 if primaries == 2 else primaries),
                   CURVES.get(13 if transfer == 2 else transfer), name, transfer in HDR)


def png_colors(chunks: Mapping[bytes, bytes]) -> Colors | None:
    """What the chunks cICP, sRGB, gAMA and cHRM say, in the order of PNG (3rd edition), 4.3; None without any."""
    if len(code := chunks.get(b"cICP", b"")) == 4:
        colors = Colors.of_codes(code[0], code[1])
        return colors if code[3] else Colors(None, None, "of a narrow range", colors.is_hdr)
    if b"sRGB" in chunks:
        return None
    gamma, points = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    if len(gamma) != 4 and len(points) != 32:
        return None
    value = struct.unpack(">I", gamma)[0] if len(gamma) == 4 else 0
    curve = (PNG_UNIT / value,) if value else SRGB_CURVE
    primaries = PRIMARIES[1]
    if len(points) == 32:
        white, *corners = np.reshape(np.array(struct.unpack(">8I", points)) / PNG_UNIT, (4, 2)).tolist()
        primaries = tuple(tuple(pair) for pair in (*corners, white))
    return Colors(primaries, curve, "gamma and chromaticities")


def made_profile(colors: Colors | None, channels: int) -> bytes | None:
    """An ICC profile (version 4.3) for gray (1 channel) or RGB pictures; None for sRGB, and where no profile can be
    made."""
    if colors is None or not colors.known or channels not in (1, 3):
        return None
    try:
        icc = _profile(colors, channels)
        return None if is_srgb(icc) else icc
    except (ValueError, np.linalg.LinAlgError, struct.error, ZeroDivisionError):
        return None  # numbers that are no colours


def _profile(colors: Colors, channels: int) -> bytes:
    def number(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    def text(words: str) -> bytes:
        data = words.encode("utf-16-be")
        return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(data), 28) + data
    curve = b"para\0\0\0\0" + struct.pack(">HH", 0 if len(colors.curve) == 1 else 3, 0) + number(*colors.curve)
    adapted, matrix = _adapted(colors.primaries)
    tags = {b"desc": text(colors.name), b"cprt": text("no copyright"), b"wtpt": b"XYZ \0\0\0\0" + number(*D50),
            b"chad": b"sf32\0\0\0\0" + number(*adapted.ravel())}
    if channels == 1:
        tags[b"kTRC"] = curve
    else:
        for i, name in enumerate((b"r", b"g", b"b")):
            tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + number(*matrix[:, i])
            tags[name + b"TRC"] = curve
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    space = b"GRAY" if channels == 1 else b"RGB "
    head = struct.pack(">I4sI4s4s4s12s4s28s", start + len(data), b"", 0x04300000, b"mntr", space, b"XYZ ",
                       struct.pack(">6H", 2026, 1, 1, 0, 0, 0), b"acsp", b"") + number(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _adapted(primaries: tuple[tuple[float, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix from the white of the primaries to that of profiles, and the one from RGB to XYZ under the latter."""
    points = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    corners, white = points[:, :3], points[:, 3]
    to_xyz = corners * np.linalg.solve(corners, white)
    cones, target = BRADFORD @ white, BRADFORD @ D50
    adaptation = np.linalg.inv(BRADFORD) @ np.diag(target / cones) @ BRADFORD
    return adaptation, adaptation @ to_xyz


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


def is_for_output(icc: bytes) -> bool:
    """Whether `from_srgb` works: some profiles of scanners and cameras have tables for the way to sRGB alone.

    Raises ValueError for an unusable profile.
    """
    channels = profile_channels(icc)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile
    intents = ImageCms.Intent.RELATIVE_COLORIMETRIC, profile.rendering_intent
    if not any(profile.is_intent_supported(intent, ImageCms.Direction.OUTPUT) for intent in intents):
        return False  # libvips would find the same, and warn of each intent
    try:
        from_srgb(np.zeros((1, 1, channels), np.uint16), icc)
    except vips().Error:
        return False
    return True


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
