"""Decoding picture files: Pillow for what has 8 bits a sample, libvips for what has more."""
from __future__ import annotations

import logging
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError

from . import exif as exif_block
from .exif import DAMAGED, MAX_BLOCK
from .formats import (
    MAX_PROFILE,
    MAX_SEARCHED,
    ImageError,
    early_size,
    gif_layout,
    pillow_formats,
    png_structure,
    register_plugins,
    require_harmless,
    starts_as_tiff,
    tiff_pages,
    unpacked_chunk,
    vips,
)
from .icc import profile_channels, to_srgb

log = logging.getLogger(__name__)

TOP_16 = 65_535
JFIF_MILLIMETRES = {1: 25.4, 2: 10.0}  # by the unit of a JFIF header
IPTC_RESOURCE = 0x0404  # of Photoshop: captions and keywords
EXIF_TEXT = "Raw profile type exif"  # keyword of PNG text
PNG_SAYS = {b"XML:com.adobe.xmp": "xmp", EXIF_TEXT.encode(): EXIF_TEXT}  # Pillow's names by keywords of PNG text
FLOAT_OVERSHOOT, FLOAT_LEVELS = 2.0, (16.0, 256.0)  # largest samples of pictures from 0 to 1, and from 0 to 255
BITS_PER_SAMPLE = 258
SAMPLE_FORMAT, SIGNED, EXTRA_SAMPLES = 339, 2, 338
MAX_BITS = 32  # of a TIFF sample
PNG_DEPTH_OFFSET = 24
ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")
SUFFIX_OF = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic"}
GRAY_AS_RGB = ("AVIF", "HEIF")  # some versions of their libraries decode gray as RGB, with alpha or without
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

    def in_srgb(self) -> Metadata:
        """The same of pixels that have become sRGB, of which a profile or a colour space would be wrong."""
        return replace(self, icc=None, exif=self.exif and exif_block.in_srgb(self.exif))


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
        self.metadata = self.metadata.in_srgb()


class _PillowLimit:
    """Pillow's own limit of pixels, one for the process: while files are open, what the most generous of their readers
    allows. Pillow refuses at twice of it; up to there it warns, which readers do better."""

    def __init__(self) -> None:
        self._lock, self._allowed, self._before = threading.Lock(), [], None
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

    @contextmanager
    def __call__(self, max_pixels: int) -> Iterator[None]:
        with self._lock:
            if not self._allowed:
                self._before = Image.MAX_IMAGE_PIXELS
            self._allowed.append(max_pixels)
            Image.MAX_IMAGE_PIXELS = max(self._allowed)
        try:
            yield
        finally:
            with self._lock:
                self._allowed.remove(max_pixels)
                Image.MAX_IMAGE_PIXELS = max(self._allowed, default=self._before)


_pillow_limit = _PillowLimit()


@contextmanager
def open_picture(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """A file's header, by Pillow: of the kinds that are read, whatever the file is called, and once it is known to be
    harmless. Callers check the sides before they decode. Raises ImageError, or what Pillow raises."""
    register_plugins()
    require_harmless(path)
    if (size := early_size(path)) is not None:
        check_size(path, *size, max_pixels)
    with _pillow_limit(max_pixels), Image.open(path, formats=pillow_formats(path)) as file:
        if file.format == "PNG":
            for name, block in _png_says(path):
                file.info.setdefault(name, block)
        yield file


def _png_says(path: Path) -> Iterator[tuple[str, bytes | str]]:
    """EXIF data and XMP of a PNG file by Pillow's names, wherever they stand: what is behind the pixels Pillow knows
    only once it has decoded them, and libvips never does. What is damaged or too long is left out."""
    with open(path, "rb") as stream:
        for name, length in png_structure(stream):
            if name == b"eXIf" and length <= MAX_SEARCHED:
                yield "exif", stream.read(length)
            elif name in (b"tEXt", b"zTXt", b"iTXt") and length <= MAX_BLOCK:
                data = stream.read(length)
                said = PNG_SAYS.get(data.partition(b"\0")[0])
                if said is None:
                    continue
                with suppress(ValueError, zlib.error):
                    text = unpacked_chunk(name, data)[1]
                    yield said, text if said == "xmp" else text.decode("latin-1")


def kind_of(file: Image.Image) -> str:
    """The suffix of a file's kind without its dot, whatever the file is called."""
    return SUFFIX_OF.get(file.format, file.format.lower())


def vips_picture(path: Path, **options: object):
    """A TIFF or PNG file as a libvips picture. By a source: in a plain name libvips takes brackets at the end for
    options, and pyvips wants text."""
    source = vips().Source.new_from_file(os.fsencode(path))
    if not starts_as_tiff(path):
        return vips().Image.pngload_source(source, **options)
    if (bits := _tiff_bits(path)) > MAX_BITS:  # in words that say more than those of libvips
        raise ImageError(f"{path}: {bits} bits a sample are not supported, up to {MAX_BITS} are")
    return vips().Image.tiffload_source(source, **options)


def tiff_orientation(path: Path, page: int) -> int | None:
    """How a page lies, 1 to 8; None where that is damaged or not said."""
    with suppress(*DAMAGED, KeyError):
        entries, layout = exif_block.tiff_entries(path, page, (exif_block.ORIENTATION,))
        found = struct.unpack_from(layout.order + "H", entries[exif_block.ORIENTATION].data)[0]
        return found if found in range(1, 9) else None
    return None


def _tiff_bits(path: Path) -> int:
    """Bits of a sample in the first directory; 0 where that is damaged or does not say it."""
    with suppress(*DAMAGED, KeyError):
        entries, layout = exif_block.tiff_entries(path, 0, (BITS_PER_SAMPLE,))
        return struct.unpack_from(layout.order + "H", entries[BITS_PER_SAMPLE].data)[0]
    return 0


def count_pages(path: Path, file: Image.Image) -> int:
    """How many pictures a file holds: frames, or pages of a TIFF file (`tiff_pages`). The second pictures of a phone's
    JPEG or HEIC are not pictures of their own."""
    if file.format == "TIFF":
        return sum(1 for _ in tiff_pages(path))
    if file.format == "GIF":
        with open(path, "rb") as stream:
            return gif_layout(stream).frames
    return getattr(file, "n_frames", 1) if file.format in ANIMATED else 1


def go_to(path: Path, file: Image.Image, frame: int) -> int | None:
    """Let Pillow stand at a picture of a file, and give its number in the file's own count; None where there is no such
    picture. Nothing behind it is looked at."""
    if file.format == "TIFF":
        number = next(islice(tiff_pages(path), frame, None), None)
    else:
        number = frame if frame == 0 or frame < count_pages(path, file) else None
    if number is not None and (frame or file.format == "TIFF"):
        file.seek(number)
    return file.tell() if number == 0 else number


def decode(path: Path, max_pixels: int, frame: int = 0) -> Decoded:
    """A file's picture. Raises ImageError for the limit and a missing frame, else what the libraries raise."""
    try:
        with open_picture(path, max_pixels) as file:
            page = go_to(path, file, frame)
            if page is None:
                raise ImageError(f"{path}: has no frame {frame} (frames: {count_pages(path, file)})")
            check_size(path, file.width, file.height, max_pixels)
            if not _is_for_vips(path, file):
                return _by_pillow(path, file, page)
            if file.format == "PNG":
                return _by_vips(path, max_pixels, page, "png", exif_of(file), xmp_of(file.info))
    except UnidentifiedImageError:
        if not starts_as_tiff(path):
            raise
        page = frame  # kinds of TIFF that Pillow does not know
    return _by_vips(path, max_pixels, page, "tiff")


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
            deep = stream.read(PNG_DEPTH_OFFSET + 1)[PNG_DEPTH_OFFSET] > 8
        if deep and file.is_animated:
            log.info("%s: 8 of its bits a sample are read, it is an animation", path)
        return deep and not file.is_animated  # libvips knows the first frame alone
    if file.format == "TIFF":
        tags = file.tag_v2
        signed = SIGNED in np.ravel(tags.get(SAMPLE_FORMAT, 1))
        unspecified = 0 in np.ravel(tags.get(EXTRA_SAMPLES, 2))
        return signed or unspecified or max(np.ravel(tags.get(BITS_PER_SAMPLE, 1))) > 8
    return False


def _by_pillow(path: Path, file: Image.Image, page: int) -> Decoded:
    if file.format == "TIFF":  # Pillow maps files that it knows by name, turned ones by the wrong sides
        file.filename = ""
    file.load()
    info = file.info  # after load: kinds add to it while they decode
    if file.format == "TIFF":  # turned by Pillow while it loads
        exif, turned = _exif_or_none(path, lambda: exif_block.of_tiff(path, page)), 1
    else:
        exif, turned = _exif_of(file, path)
    metadata = Metadata(exif, _not_too_long(xmp_of(info), "XMP", path), info.get("icc_profile") or None)
    decoded = Decoded(np.empty(0), kind_of(file), turned, metadata, page)
    if file.format in ("JPEG", "MPO"):
        _add_jpeg_data(decoded, file, path)
    elif file.format == "GIF" and info.get("comment"):
        decoded.metadata = replace(decoded.metadata, comments=(info["comment"],))
    decoded.pixels = _pixels(file, decoded, path)
    return decoded


def _not_too_long(block: bytes | None, what: str, path: Path) -> bytes | None:
    """A block of metadata; None, with a warning, instead of one that is too long to be carried along."""
    if block is not None and len(block) > exif_block.MAX_BLOCK:
        log.warning("%s: the %s is left out: %d bytes are too many", path, what, len(block))
        return None
    return block


def _add_jpeg_data(decoded: Decoded, file: Image.Image, path: Path) -> None:
    """Comments, captions, and the resolution of the JFIF header, which comes before that of EXIF."""
    metadata = decoded.metadata
    unit, density = file.info.get("jfif_unit"), file.info.get("jfif_density")
    if unit in JFIF_MILLIMETRES and density and min(density) > 0:
        x, y = (side / JFIF_MILLIMETRES[unit] for side in density)
        metadata = replace(metadata, resolution=(x, y))
    comments = tuple(data for name, data in getattr(file, "applist", ()) if name == "COM")
    if _not_too_long(b"".join(comments), "text of its comments", path) is None:
        comments = ()
    iptc = (file.info.get("photoshop") or {}).get(IPTC_RESOURCE)  # a segment holds it: 64 KB at most
    decoded.metadata = replace(metadata, comments=comments, iptc=iptc if isinstance(iptc, bytes) and iptc else None)


def _exif_or_none(path: Path, read: Callable[[], bytes | None]) -> bytes | None:
    """What is read, or None, with a warning, where that is harmful, damaged or too long."""
    try:
        return read()
    except ValueError as error:
        log.warning("%s: the EXIF data is left out (%s)", path, error)
        return None


def _exif_of(file: Image.Image, path: Path) -> tuple[bytes | None, int]:
    """The upright EXIF block, and how the picture lies, which a block that is left out may say all the same."""
    block, usable = exif_of(file), None
    try:
        usable = usable_exif(block) if block else None
    except DAMAGED as error:
        log.warning("%s: the EXIF data is damaged and left out (%s)", path, error)
    return usable, orientation_of(file)


def usable_exif(block: bytes) -> bytes:
    """The block, upright. Raises ValueError where it is too long, harmful or damaged."""
    if len(block) > exif_block.MAX_BLOCK:
        raise ValueError(f"{len(block)} bytes are too many")
    exif_block.require_harmless_block(block)
    return exif_block.upright(block)


def exif_of(file: Image.Image) -> bytes | None:
    """The block from its TIFF header on, also of a text that ImageMagick gives PNG files (`raw_profile`)."""
    block = file.info.get("exif")
    if block is None and isinstance(text := file.info.get(EXIF_TEXT), str):
        with suppress(ValueError):
            block = raw_profile(text)
    return exif_block.bare(block) if block else None


def raw_profile(text: str) -> bytes:
    """What is in a text that ImageMagick calls "Raw profile type": name, length, lines of hexadecimal digits. Raises
    ValueError."""
    return bytes.fromhex("".join(text.split()[2:]))


def orientation_of(file: Image.Image) -> int:
    """How a picture lies, 1 to 8: as EXIF says, else XMP; 1 where Pillow gives it upright by itself."""
    if file.format == "JXL" and not file.jpeg:  # the decoder turns it, and EXIF does not count (ISO/IEC 18181-2)
        return 1
    if file.format == "TIFF" and exif_block.ORIENTATION in file.tag_v2:
        return 1
    return _lies(exif_block.orientation(exif_of(file)), xmp_of(file.info))


def _lies(by_exif: int | None, xmp: bytes | None) -> int:
    if by_exif is not None:
        return by_exif
    said = exif_block.XMP_ORIENTATION.search(xmp or b"")
    return int(said[2]) if said else 1


def xmp_of(info: dict) -> bytes | None:
    """The packet among what Pillow knows of a file."""
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
    icc = decoded.metadata.icc
    gray = (mode in ("1", "L", "LA", "La") or (mode in ("P", "PA") and icc is None and _gray_palette(file))
            or (file.format in GRAY_AS_RGB and icc is not None and _gray_by_profile(file, icc)))
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


def _gray_by_profile(file: Image.Image, icc: bytes) -> bool:
    """Whether RGB pixels are those of a gray file: their profile is a gray one, and they have no colour."""
    try:
        if file.mode not in ("RGB", "RGBA") or profile_channels(icc) != 1:
            return False
    except ValueError:  # unusable, as the one who uses it will say
        return False
    red, green, blue = file.split()[:3]
    return all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))


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
        if len(icc) > MAX_PROFILE:
            raise ValueError(f"{len(icc)} bytes are too many")
        found = profile_channels(icc)
        if found == channels:
            return icc
        problem = f"it is for pictures of {found} channels, the picture has {channels}"
    except ValueError as error:
        problem = str(error)
    log.warning("%s: the colour profile is left out: %s", path, problem)
    return None


def _by_vips(path: Path, max_pixels: int, page: int, kind: str, block: bytes | None = None,
             xmp: bytes | None = None) -> Decoded:
    """block, xmp: EXIF data and XMP of a PNG file, which libvips overlooks in texts and behind the pixels."""
    options = {"page": page} if kind == "tiff" else {"unlimited": True}
    picture = vips_picture(path, access="sequential", fail_on="error", **options)
    check_size(path, picture.width, picture.height, max_pixels)
    blobs = {name: bytes(picture.get(name)) if picture.get_typeof(name) else None
             for name in ("exif-data", "xmp-data", "icc-profile-data")}
    block, xmp = blobs["exif-data"] or block, blobs["xmp-data"] or xmp
    turned = _lies(tiff_orientation(path, page) if kind == "tiff" else exif_block.orientation(block), xmp)

    def usable() -> bytes | None:
        return exif_block.of_tiff(path, page) if kind == "tiff" else usable_exif(block) if block else None
    exif = _exif_or_none(path, usable)
    decoded = Decoded(np.empty(0), SUFFIX_OF.get(kind.upper(), kind), turned,
                      Metadata(exif, _not_too_long(xmp, "XMP", path), blobs["icc-profile-data"]), page)
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
    if picture.bands > 4:
        raise ImageError(f"{path}: {picture.bands} channels are not supported, 1 to 4 are")
    if picture.interpretation == "cmyk":
        icc = usable_profile(decoded.metadata.icc, 4, path)
        decoded.drop_profile()
        return to_srgb(picture.numpy(), icc) if icc else picture.colourspace("rgb16").numpy()
    if picture.interpretation in ("lab", "labs", "xyz"):
        decoded.drop_profile()
        picture = picture.colourspace("rgb16")
    if picture.format in ("float", "double"):  # in the encoding of the profile as everything else
        picture = (picture * (TOP_16 / _float_top(path, decoded.page))).rint().cast("ushort")
    elif picture.format == "uint":
        picture = (picture >> 16).cast("ushort")
    elif picture.format not in ("uchar", "ushort"):
        raise ImageError(f"{path}: samples of the type {picture.format} are not supported")
    pixels = picture.numpy()
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
