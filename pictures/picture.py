"""One picture of a file, whatever its kind: upright sRGB pixels of the file's depth, alpha, and its metadata."""
from __future__ import annotations

import json
import logging
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from utils.errors import first_line

from . import exif as exif_block
from .exif import DAMAGED, MAX_BLOCK, SOFTWARE, XMP_ORIENTATION, announced, without_announcements
from .file_reader import (
    IPTC_RESOURCE,
    Decoded,
    Metadata,
    count_pages,
    decode,
    exif_of,
    go_to,
    kind_of,
    open_picture,
    orientation_of,
    raw_profile,
    tiff_orientation,
    usable_profile,
    vips_picture,
    xmp_of,
)
from .formats import ImageError, early_size, jxl_head, png_structure, reason, starts_as_tiff, unpacked_chunk, vips
from .icc import Colors, is_for_output, is_srgb, made_profile, png_colors, to_srgb

log = logging.getLogger(__name__)

BAND = 512  # rows that are float at a time at full size; even
MAX_PIXELS = 2 ** 28  # 16384 x 16384: 805 MB as 8-bit RGB
PNG_TEXTS, PNG_COLORS, PNG_RESOLUTION = (b"tEXt", b"zTXt", b"iTXt"), (b"cICP", b"sRGB", b"gAMA", b"cHRM"), b"pHYs"
METRE = 1  # the unit of a PNG's resolution
LEAST, MOST = 1e-3, 1e4  # pixels per millimetre: more, or less, cannot be said in all kinds, nor be meant
XMP_KEYWORD = b"XML:com.adobe.xmp"
IPTC_KEYWORDS = (b"Raw profile type iptc", b"Raw profile type 8bim")
PROFILE_KEYWORDS = (*IPTC_KEYWORDS,
                    *(b"Raw profile type " + kind for kind in (b"exif", b"APP1", b"xmp", b"icc", b"icm")))
IIM_START = b"\x1c"  # of a record of captions and keywords
HEAD_BYTES = 2 ** 16  # of an AVIF or HEIC file, that hold its colour codes
NCLX = re.compile(rb"colrnclx(.{4})", re.DOTALL)
PNG_SOFTWARE, SETTINGS = "Software", "VARSR"  # keywords of PNG text

# All that Pillow and its plugins raise for one damaged file or another
DAMAGED_FILE = (OSError, SyntaxError, EOFError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError,
                struct.error, zlib.error)


def bleed(color: np.ndarray, alpha: np.ndarray) -> None:
    """Replace, in place, what `color` (h, w, c) holds where `alpha` (h, w) is 0, from the visible pixels, so that
    enlarging draws no fringe around a shape; both uint8 or uint16.

    The fill is a pyramid (pull-push, after Gortler et al., The Lumigraph, 1996): averages of the visible colours go
    down, and every hole takes the colour of the finest level that knows one. Time is linear in the pixels.
    A picture without any visible pixel stays as it is.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return
    means, weights = _first_level(color, alpha)
    fill = _filled(means, weights)
    for top in range(0, len(color), BAND):
        rows = slice(top, min(top + BAND, len(color)))
        band = _enlarged(fill, rows.start, rows.stop, color.shape[1]).round().permute(1, 2, 0).numpy()
        np.copyto(color[rows], band.astype(color.dtype), where=hidden[rows, :, None])


def _first_level(color: np.ndarray, alpha: np.ndarray) -> tuple[Tensor, Tensor]:
    """Means (c, h/2, w/2) of the visible colours and their weights (1, h/2, w/2), by bands."""
    levels = []
    for top in range(0, len(color), BAND):
        rows = slice(top, top + BAND)
        weight = torch.from_numpy(alpha[rows].astype(np.float32))[None] / np.iinfo(alpha.dtype).max
        levels.append(_halved(torch.from_numpy(color[rows].astype(np.float32)).permute(2, 0, 1), weight))
    return torch.cat([means for means, _ in levels], dim=1), torch.cat([weights for _, weights in levels], dim=1)


def _halved(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The next level of the pyramid; sides are rounded up."""
    pad = (0, means.shape[2] % 2, 0, means.shape[1] % 2)
    total = F.avg_pool2d(F.pad(means * weights, pad), 2)
    weights = F.avg_pool2d(F.pad(weights, pad), 2)
    return torch.where(weights > 0, total / weights.clamp_min(1e-12), 0), weights


def _filled(means: Tensor, weights: Tensor) -> Tensor:
    """A level without holes: those of it are filled from the next, coarser one."""
    if (weights > 0).all() or max(means.shape[1:]) == 1:
        return means
    coarse = _filled(*_halved(means, weights))
    return torch.where(weights > 0, means, _enlarged(coarse, 0, means.shape[1], means.shape[2]))


def _enlarged(coarse: Tensor, top: int, bottom: int, width: int) -> Tensor:
    """Rows `top` (even) to `bottom` of a level (c, h, w) enlarged twofold, bilinear: (c, bottom - top, width)."""
    first, last = max(top // 2 - 1, 0), min((bottom + 1) // 2 + 1, coarse.shape[1])
    double = F.interpolate(coarse[None, :, first:last], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return double[:, top - 2 * first:bottom - 2 * first, :width]


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    color: (h, w, 3), or (h, w, 1) of gray pictures; uint8 or uint16, upright, sRGB; under fully transparent pixels
        the colour of the visible ones nearby.
    alpha: (h, w) of the same type where the file has transparency, opaque or not.
    is_gray: the file has no colour.
    metadata: `icc` is the profile that the file's colours were in, to which a result goes back; None where it cannot.
    format: the suffix of the file's kind without its dot.
    """

    color: np.ndarray
    alpha: np.ndarray | None
    is_gray: bool
    metadata: Metadata
    format: str

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.color.shape[0]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.color.shape[1]

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """A part of the picture as (3, height, width) float32 RGB in [0, 1]."""
        part = self.color[top:top + height, left:left + width]
        values = np.ascontiguousarray(part.transpose(2, 0, 1), dtype=np.float32)
        values = torch.from_numpy(values).div_(np.iinfo(self.color.dtype).max)
        return values if values.shape[0] == 3 else values.expand(3, -1, -1).contiguous()


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS, frame: int = 0) -> Picture:
    """Read a file of any kind in `formats.SUFFIXES`; of an animation or several pages the one numbered `frame`.

    Palettes and 1 bit become 8-bit gray or RGB, CMYK becomes sRGB by its profile. The depth is that of the file's
    header. Raises ImageError, one line with the file: missing, empty, damaged, no picture, too large, no permission.
    """
    path = Path(path)
    with _one_line_errors(path):
        decoded = decode(path, max_pixels, frame)
        return _finished(decoded, path)


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels: the sides of the upright picture in pixels, how many pictures there are, the
    suffix of the kind without its dot."""

    height: int
    width: int
    frames: int
    kind: str


def read_header(path: str | Path, frame: int = 0, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of anything that `read_picture` reads. `frames` is 1 for a still picture, else the frames of an
    animation or the pages of a TIFF file; a missing frame has the size of the first.

    max_pixels: more are refused of kinds whose libraries take memory for them as they open a file. Raises ImageError.
    """
    path = Path(path)
    with _one_line_errors(path):
        try:
            if (jxl := jxl_head(path)) is not None:
                sides, frames, kind, turned = (jxl.width, jxl.height), 1, "jxl", 1
            else:
                with open_picture(path, max_pixels) as file:
                    frames, kind = count_pages(path, file), kind_of(file)
                    go_to(path, file, frame if frame < frames else 0)
                    sides, turned = file.size, orientation_of(file)
        except UnidentifiedImageError:
            if not starts_as_tiff(path):
                raise
            picture = vips_picture(path)
            sides, frames, kind = (picture.width, picture.height), picture.get("n-pages"), "tif"
            turned = tiff_orientation(path, 0) or 1
    width, height = reversed(sides) if turned in (5, 6, 7, 8) else sides
    return Header(height, width, frames, kind)


def software_of(path: str | Path) -> str | None:
    """Which program a file says it was made by, in a PNG's text or in EXIF; None where it says nothing or cannot be
    read."""
    path = Path(path)
    try:
        with _one_line_errors(path):
            if (jxl := jxl_head(path)) is not None:
                return exif_block.text_of(jxl.exif, SOFTWARE)
            if early_size(path) is not None:  # GIF files do not say it
                return None
            with open_picture(path, sys.maxsize) as file:  # results may be larger than sources
                block = exif_block.of_tiff(path) if file.format == "TIFF" else exif_of(file)
                said = file.info.get(PNG_SOFTWARE) or exif_block.text_of(block, SOFTWARE)
    except ImageError:
        return None
    return said if isinstance(said, str) else None


def read_making(path: str | Path) -> str | None:
    """What a result's file says of its making (see `ResultOptions.text`); None where it says nothing or cannot be
    read."""
    path = Path(path)
    try:
        with _one_line_errors(path):
            text = None
            if (jxl := jxl_head(path)) is not None:
                block, xmp = jxl.exif, None
            elif starts_as_tiff(path):
                entries, _ = exif_block.tiff_entries(path, 0, (exif_block.XMP_PACKET,))
                block, packet = exif_block.of_tiff(path), entries.get(exif_block.XMP_PACKET)
                xmp = packet and packet.data
            else:
                with open_picture(path, sys.maxsize) as file:  # results may be larger than sources
                    text, block, xmp = file.info.get(SETTINGS), exif_of(file), xmp_of(file.info)
            said = text, exif_block.text_of(block, exif_block.USER_COMMENT), exif_block.settings_of(xmp)
    except ImageError:
        return None
    return next(filter(None, map(_making, said)), None)


def _making(said: object) -> str | None:
    """The settings among what a file says, if these are ours."""
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        return str(json.loads(said)[SETTINGS])
    return None


def _side_data(decoded: Decoded, path: Path) -> tuple[Metadata, Colors | None]:
    """The metadata with what stands beside EXIF, XMP and profile in the kinds whose structure is read here, PNG, TIFF
    and AVIF; and what the file says of its colours where it has no profile."""
    metadata, colors = decoded.metadata, None
    if metadata.resolution is None:
        metadata = replace(metadata, resolution=exif_block.resolution(metadata.exif))
    if decoded.format == "png":
        metadata, colors = _with_png_chunks(metadata, path)
    elif decoded.format == "tif":
        with suppress(*DAMAGED):
            tags = (*exif_block.RESOLUTION, exif_block.IPTC_RECORD)
            entries, layout = exif_block.tiff_entries(path, decoded.page, tags)
            iptc = entries[exif_block.IPTC_RECORD].data if exif_block.IPTC_RECORD in entries else None
            metadata = replace(metadata, resolution=exif_block.resolution_of(entries, layout), iptc=iptc or None)
    elif decoded.format in ("avif", "heic") and metadata.icc is None:
        colors = _nclx(path)
    if colors is not None and colors.is_hdr:
        raise ImageError(f"{path}: an HDR picture ({colors.name}): its tones would come out wrong, convert it to SDR")
    return metadata, colors


def png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Names and data of the chunks of a PNG file that say something of the picture; too long ones are left out."""
    with open(path, "rb") as stream:
        for name, length in png_structure(stream):
            if name not in PNG_TEXTS + PNG_COLORS + (PNG_RESOLUTION,):
                continue
            if length > MAX_BLOCK:
                log.warning("%s: a %s chunk of %d bytes is left out, it is too long", path, name.decode(), length)
                continue
            yield name, stream.read(length)


def png_text(name: bytes, data: bytes) -> tuple[str, str]:
    """Keyword and text of a text chunk (PNG, 11.3.3). Raises ValueError where it is damaged or grows too long."""
    keyword, text = unpacked_chunk(name, data)
    return keyword.decode("latin-1"), text.decode("utf-8" if name == b"iTXt" else "latin-1", "replace")


def _with_png_chunks(metadata: Metadata, path: Path) -> tuple[Metadata, Colors | None]:
    kept, found, total = [], {}, 0
    for name, data in png_chunks(path):
        if name not in PNG_TEXTS:
            found.setdefault(name, data)
            continue
        total += len(data)
        keyword = data.partition(b"\0")[0]
        if keyword in (XMP_KEYWORD, *PROFILE_KEYWORDS) or total > MAX_BLOCK:
            if keyword in IPTC_KEYWORDS:
                with suppress(ValueError, zlib.error):
                    metadata = replace(metadata, iptc=_iptc_of_profile(png_text(name, data)[1]))
            continue
        kept.append((name, data))
    if total > MAX_BLOCK:
        log.warning("%s: more than %d bytes of texts; what is beyond is left out", path, MAX_BLOCK)
    if len(density := found.get(PNG_RESOLUTION, b"")) == 9:
        x, y, unit = struct.unpack(">IIB", density)
        if unit == METRE and x and y:
            metadata = replace(metadata, resolution=(x / 1000, y / 1000))
    colors = png_colors(found)
    if colors is not None and not colors.known and not colors.is_hdr:
        log.warning("%s: its colours are said by codes that are not known (%s): taken for sRGB", path, colors.name)
        return replace(metadata, chunks=(*kept, (b"cICP", found[b"cICP"]))), None
    return replace(metadata, chunks=tuple(kept)), colors


def _iptc_of_profile(text: str) -> bytes | None:
    """The IIM record of a "Raw profile type iptc" text."""
    data = raw_profile(text)
    return data if data[:1] == IIM_START else photoshop_resource(data)


def photoshop_resource(data: bytes) -> bytes | None:
    """The IIM record among Photoshop's resources; None where there is none."""
    place = data.find(b"8BIM" + struct.pack(">H", IPTC_RESOURCE))
    if place < 0 or len(data) < place + 7:
        return None
    place += 6 + (data[place + 6] + 2) // 2 * 2  # its name, padded with its length to an even number
    if len(data) < place + 4:
        return None
    length = struct.unpack_from(">I", data, place)[0]
    return data[place + 4:place + 4 + length] or None


def _nclx(path: Path) -> Colors | None:
    """The colour codes of an AVIF or HEIC file, which stand near its start. Beside an SDR picture there may be those of
    an HDR one that is made of it and a gain map."""
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    found = [Colors.of_codes(*struct.unpack(">HH", match[1])) for match in NCLX.finditer(head)]
    return next((colors for colors in found if not colors.is_hdr), found[0] if found else None)


def _finished(decoded: Decoded, path: Path) -> Picture:
    channels = decoded.pixels.shape[2]
    colors = channels - 1 if channels in (2, 4) else channels
    metadata, said = _side_data(decoded, path)
    if metadata.resolution is not None and not all(LEAST <= side <= MOST for side in metadata.resolution):
        metadata = replace(metadata, resolution=None)
    icc = usable_profile(metadata.icc, colors, path) or made_profile(said, colors)
    pixels = _upright(decoded.pixels, decoded.orientation)
    color, alpha = pixels[:, :, :colors], pixels[:, :, colors] if colors < channels else None
    if icc is not None and not is_srgb(icc):
        color = to_srgb(color, icc)
        if not is_for_output(icc):  # now, and not when a result is to be written after all the work
            log.warning("%s: the colour profile is left out: no colours can be converted to it, results are sRGB", path)
            icc, metadata = None, metadata.in_srgb()
    if alpha is not None:
        color, alpha = np.array(color, order="C"), np.array(alpha, order="C")
        bleed(color, alpha)
    color = np.ascontiguousarray(color)
    metadata = replace(metadata, icc=icc, xmp=_result_xmp(metadata.xmp, path))
    return Picture(color, alpha, colors == 1, metadata, decoded.format)


def _result_xmp(xmp: bytes | None, path: Path) -> bytes | None:
    """What of a packet is true of a result too: upright, without what else the file held."""
    if xmp is None:
        return None
    if lost := announced(xmp):
        log.warning("%s: left out, with the XMP that announces it: %s", path, ", ".join(lost))
        xmp = without_announcements(xmp)
    return XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if xmp else None


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of pixels (h, w, c) turned as EXIF's orientation says (1 to 8)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # after the swap of 5 to 8, what is left are mirrorings of rows, of columns or of both
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1),
                     5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
    return pixels[::rows, ::columns]


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Whatever the libraries raise for a bad file, as ImageError."""
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture in a format that can be read") from error
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to read it") from error
    except Image.DecompressionBombError as error:  # of Pillow, for what it would take memory for as it opens a file
        raise ImageError(f"{path}: too many pixels (--max_pixels changes the limit)") from error
    except MemoryError as error:
        raise ImageError(f"{path}: takes more memory than there is") from error
    except DAMAGED_FILE as error:
        raise ImageError(f"{path}: cannot be read ({first_line(error)})") from error
    except vips().Error as error:
        raise ImageError(f"{path}: cannot be read ({reason(error)})") from error
