"""Decoding picture files: Pillow for what has 8 bits a sample, libvips for what has more."""
from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from . import exif as exif_block
from .exif import DAMAGED
from .formats import ImageError, register_plugins, vips
from .icc import profile_channels, to_srgb

log = logging.getLogger(__name__)

TOP_16 = 65_535
JFIF_MILLIMETRES = {1: 25.4, 2: 10.0}  # by the unit of a JFIF header
IPTC_RESOURCE = 0x0404  # of Photoshop: captions and keywords
FLOAT_OVERSHOOT, FLOAT_LEVELS = 2.0, (16.0, 256.0)  # largest samples of pictures from 0 to 1, and from 0 to 255
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS_PER_SAMPLE, SUBFILE_TYPE, REDUCED = 258, 254, 1
SAMPLE_FORMAT, SIGNED, EXTRA_SAMPLES = 339, 2, 338
MAX_BITS = 32  # of a TIFF sample
PNG_DEPTH_OFFSET = 24
ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")
SUFFIX_OF = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic", "DIB": "bmp"}
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # all of them gray
BAND_PIXELS = 2 ** 22  # converted at a time


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels; docs/files.md has a table of what becomes of it.

    exif: starts at its TIFF header, says orientation 1, has no thumbnail. resolution: pixels per millimetre (x, y).
    chunks: name and data of PNG chunks that are kept as they are: texts but XMP, and a colour code nobody knows.
    comments: of JPEG and GIF files. iptc: the record of captions and keywords (IIM).
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None
    resolution: tuple[float, float] | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    comments: tuple[bytes, ...] = ()
    iptc: bytes | None = None


@dataclass
class Decoded:
    """A file's picture as it is stored: `pixels` (h, w, c), c of 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
    page: its number in the file."""

    pixels: np.ndarray
    format: str
    orientation: int = 1
    metadata: Metadata = field(default_factory=Metadata)
    page: int = 0

    def drop_profile(self) -> None:
        """The pixels are in sRGB now."""
        self.metadata = replace(self.metadata, icc=None)


class _NoPillowLimit:
    """While anyone is within it, Pillow's own limit of pixels, which is one for the process, is off."""

    def __init__(self) -> None:
        self._lock, self._users, self._limit = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


_no_pillow_limit = _NoPillowLimit()


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A file's header, by Pillow, without Pillow's own limit of pixels: callers check theirs before decoding."""
    register_plugins()
    with _no_pillow_limit, Image.open(path) as file:
        yield file


def kind_of(file: Image.Image) -> str:
    """The suffix of a file's kind without its dot, whatever the file is called."""
    return SUFFIX_OF.get(file.format, file.format.lower())


def is_tiff(path: Path) -> bool:
    """By its first bytes."""
    with open(path, "rb") as stream:
        return stream.read(4) in TIFF_MAGIC


def vips_picture(path: Path, **options: object):
    """A file as a libvips picture. By a source: in a plain name libvips takes brackets at the end for options, and
    pyvips wants text."""
    bits = _tiff_bits(path) if is_tiff(path) else 0
    if bits > MAX_BITS:  # in words that say more than those of libvips
        raise ImageError(f"{path}: {bits} bits a sample are not supported, up to {MAX_BITS} are")
    return vips().Image.new_from_source(vips().Source.new_from_file(os.fsencode(path)), "", **options)


def _tiff_bits(path: Path) -> int:
    """Bits of a sample in the first directory; 0 where that is damaged or does not say it."""
    with suppress(*DAMAGED, KeyError):
        entries, layout = exif_block.tiff_entries(path, 0, (BITS_PER_SAMPLE,))
        return struct.unpack_from(layout.order + "H", entries[BITS_PER_SAMPLE].data)[0]
    return 0


def pages(file: Image.Image) -> list[int]:
    """Numbers of the pictures in a file, in its own count.

    Reduced versions in a TIFF file and the second pictures of a phone's JPEG or HEIC are not pictures of their own.
    """
    count = getattr(file, "n_frames", 1)
    if file.format in ANIMATED:
        return list(range(count))
    if file.format != "TIFF" or count == 1:
        return [file.tell()]
    full = []
    for page in range(count):
        file.seek(page)
        if not file.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED:
            full.append(page)
    file.seek(0)
    return full or [0]


def decode(path: Path, max_pixels: int, frame: int = 0) -> Decoded:
    """A file's picture. Raises ImageError for the limit and a missing frame, else what the libraries raise."""
    try:
        with open_picture(path) as file:
            numbers = pages(file)
            if frame >= len(numbers):
                raise ImageError(f"{path}: has no frame {frame} (frames: {len(numbers)})")
            if frame or file.format == "TIFF":
                file.seek(numbers[frame])
            check_size(path, file.width, file.height, max_pixels)
            if not _is_for_vips(path, file):
                return _by_pillow(path, file, numbers[frame])
            page, kind = numbers[frame], file.format.lower()
    except UnidentifiedImageError:
        if not is_tiff(path):
            raise
        page, kind = frame, "tiff"  # kinds of TIFF that Pillow does not know
    return _by_vips(path, max_pixels, page, kind)


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError where there are no pixels, or more than allowed."""
    if width < 1 or height < 1:
        raise ImageError(f"{path}: has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"{path}: too many pixels ({width}x{height}; the limit is {max_pixels}, "
                         "--max_pixels changes it)")


def _is_for_vips(path: Path, file: Image.Image) -> bool:
    """Whether a file has more than 8 bits, or samples that Pillow would drop or misread."""
    if file.format == "PNG":
        with open(path, "rb") as stream:
            return stream.read(PNG_DEPTH_OFFSET + 1)[PNG_DEPTH_OFFSET] > 8
    if file.format == "TIFF":
        tags = file.tag_v2
        signed = SIGNED in np.ravel(tags.get(SAMPLE_FORMAT, 1))
        unspecified = 0 in np.ravel(tags.get(EXTRA_SAMPLES, 2))
        return signed or unspecified or max(np.ravel(tags.get(BITS_PER_SAMPLE, 1))) > 8
    return False


def _by_pillow(path: Path, file: Image.Image, page: int) -> Decoded:
    file.load()
    info = file.info  # after load: kinds add to it while they decode
    if file.format == "TIFF":  # turned by Pillow while it loads
        exif, turned = exif_block.of_tiff(path, page), 1
    else:
        exif, turned = _exif_of(file, path)
    metadata = Metadata(exif, _xmp_of(info), info.get("icc_profile") or None)
    decoded = Decoded(np.empty(0), kind_of(file), turned, metadata, page)
    if file.format in ("JPEG", "MPO"):
        _add_jpeg_data(decoded, file)
    elif file.format == "GIF" and info.get("comment"):
        decoded.metadata = replace(decoded.metadata, comments=(info["comment"],))
    decoded.pixels = _pixels(file, decoded, path)
    return decoded


def _add_jpeg_data(decoded: Decoded, file: Image.Image) -> None:
    """Comments, captions, and the resolution of the JFIF header, which comes before that of EXIF."""
    metadata = decoded.metadata
    unit, density = file.info.get("jfif_unit"), file.info.get("jfif_density")
    if unit in JFIF_MILLIMETRES and density and min(density) > 0:
        x, y = (side / JFIF_MILLIMETRES[unit] for side in density)
        metadata = replace(metadata, resolution=(x, y))
    comments = tuple(data for name, data in getattr(file, "applist", ()) if name == "COM")
    iptc = (file.info.get("photoshop") or {}).get(IPTC_RESOURCE)
    decoded.metadata = replace(metadata, comments=comments, iptc=iptc if isinstance(iptc, bytes) and iptc else None)


def _exif_of(file: Image.Image, path: Path) -> tuple[bytes | None, int]:
    """The upright EXIF block, and how the picture lies."""
    try:
        turned = file.getexif().get(exif_block.ORIENTATION, 1)  # also from XMP and the turns of AVIF files
        block = file.info.get("exif") or (file.getexif().tobytes() if len(file.getexif()) else None)
        return exif_block.upright(block) if block else None, turned if turned in range(1, 9) else 1
    except (*DAMAGED, SyntaxError, LookupError, TypeError) as error:  # Pillow's for damaged blocks
        log.warning("%s: the EXIF data is damaged and left out (%s)", path, error)
        return None, 1


def _xmp_of(info: dict) -> bytes | None:
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    return xmp.encode() if isinstance(xmp, str) else xmp or None


def _pixels(file: Image.Image, decoded: Decoded, path: Path) -> np.ndarray:
    """The decoded picture in gray or RGB, with alpha where the file has it; drops a profile that is used up."""
    mode = file.mode
    if mode in DEEP_MODES:
        return _by_bands(file, 1, np.dtype(np.uint16), _deep_gray)
    if mode == "CMYK":
        return _from_cmyk(file, decoded, path)
    if mode == "LAB":
        decoded.drop_profile()
        return _by_bands(file, 3, np.dtype(np.uint8), _from_lab)
    plain = decoded.metadata.icc is None
    gray = mode in ("1", "L", "LA", "La") or (mode in ("P", "PA") and plain and _gray_palette(file))
    if "transparency" in file.info or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        # by way of RGBA, to which every kind of transparency converts
        return _by_bands(file, 2 if gray else 4, np.dtype(np.uint8),
                         lambda band: np.asarray(band.convert("RGBA"))[:, :, 2 if gray else 0:])
    return _by_bands(file, 1 if gray else 3, np.dtype(np.uint8), lambda band: band.convert("L" if gray else "RGB"))


def _by_bands(file: Image.Image, channels: int, dtype: np.dtype,
              convert: Callable[[Image.Image], Image.Image | np.ndarray]) -> np.ndarray:
    """A picture converted by bands of rows into one array (h, w, channels), so that nothing else is as large."""
    pixels = np.empty((file.height, file.width, channels), dtype)
    rows = max(BAND_PIXELS // file.width, 1)
    for top in range(0, file.height, rows):
        bottom = min(top + rows, file.height)
        band = np.asarray(convert(file.crop((0, top, file.width, bottom))))
        pixels[top:bottom] = band.reshape(bottom - top, file.width, channels)
    return pixels


def _deep_gray(band: Image.Image) -> np.ndarray:
    values = np.asarray(band)
    if values.dtype == np.float32:
        values = (values * TOP_16).round()
    return values.clip(0, TOP_16)


def _from_lab(band: Image.Image) -> Image.Image:
    return ImageCms.profileToProfile(band, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"),
                                     outputMode="RGB")


def _gray_palette(file: Image.Image) -> bool:
    palette = np.asarray(file.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _from_cmyk(file: Image.Image, decoded: Decoded, path: Path) -> np.ndarray:
    """CMYK as sRGB, by its profile if it has one."""
    icc = usable_profile(decoded.metadata.icc, 4, path)
    decoded.drop_profile()
    return _by_bands(file, 3, np.dtype(np.uint8),
                     lambda band: band.convert("RGB") if icc is None else to_srgb(np.asarray(band), icc))


def usable_profile(icc: bytes | None, channels: int, path: Path) -> bytes | None:
    """The profile if it can be used for pixels of so many channels; else None, with a warning."""
    if icc is None:
        return None
    try:
        found = profile_channels(icc)
        if found == channels:
            return icc
        problem = f"it is for pictures of {found} channels, the picture has {channels}"
    except ValueError as error:
        problem = str(error)
    log.warning("%s: the colour profile is left out: %s", path, problem)
    return None


def _by_vips(path: Path, max_pixels: int, page: int, kind: str) -> Decoded:
    options = {"page": page} if kind == "tiff" else {"unlimited": True}
    picture = vips_picture(path, access="sequential", fail_on="error", **options)
    check_size(path, picture.width, picture.height, max_pixels)
    blobs = {name: bytes(picture.get(name)) if picture.get_typeof(name) else None
             for name in ("exif-data", "xmp-data", "icc-profile-data")}
    exif = blobs["exif-data"]
    turned = picture.get("orientation") if picture.get_typeof("orientation") else 1
    try:
        exif = exif_block.of_tiff(path, page) if kind == "tiff" else exif_block.upright(exif) if exif else None
    except ValueError as error:
        log.warning("%s: %s and left out", path, error)
        exif = None
    decoded = Decoded(np.empty(0), SUFFIX_OF.get(kind.upper(), kind), turned if 1 <= turned <= 8 else 1,
                      Metadata(exif, blobs["xmp-data"], blobs["icc-profile-data"]), page)
    decoded.pixels = _vips_pixels(picture, decoded, path)
    return decoded


def _float_top(path: Path, page: int) -> float:
    """What white is in a file of float samples: 1 or 255, by the largest one. Raises ImageError where it is neither."""
    largest = vips_picture(path, access="sequential", page=page).max()
    if largest <= FLOAT_OVERSHOOT:
        return 1.0
    if FLOAT_LEVELS[0] <= largest <= FLOAT_LEVELS[1]:
        log.info("%s: float samples up to %g are taken for levels from 0 to 255", path, largest)
        return 255.0
    raise ImageError(f"{path}: float samples up to {largest:g}: 0 to 1 and 0 to 255 are understood")


def _vips_pixels(picture, decoded: Decoded, path: Path) -> np.ndarray:
    if picture.interpretation == "cmyk":
        icc = usable_profile(decoded.metadata.icc, 4, path)
        decoded.drop_profile()
        colors = picture.extract_band(0, n=4)
        return to_srgb(colors.numpy(), icc) if icc else colors.colourspace("rgb16").numpy()
    if picture.interpretation in ("lab", "labs", "xyz"):
        decoded.drop_profile()
        picture = picture.colourspace("rgb16")
    if picture.format in ("float", "double"):  # in the encoding of the profile as everything else
        picture = (picture * (TOP_16 / _float_top(path, decoded.page))).rint().cast("ushort")
    elif picture.format == "uint":
        picture = (picture >> 16).cast("ushort")
    elif picture.format not in ("uchar", "ushort"):
        raise ImageError(f"{path}: samples of the type {picture.format} are not supported")
    if picture.bands > 4:
        raise ImageError(f"{path}: {picture.bands} channels are not supported, 1 to 4 are")
    pixels = picture.numpy()
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
