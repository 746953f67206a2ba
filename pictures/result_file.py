"""The file of one restored picture: filled by bands of rows in any order, then encoded, whole or not at all."""
from __future__ import annotations

import logging
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, floor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.errors import UserError
from utils.files import no_links, replacing, temporary_beside, write_at

from .exif import LONG8, SHORT, Entry, Layout, directory_bytes
from .file_reader import Metadata, check_size, decode, vips_picture
from .file_writer import SETTINGS, Labels, encode
from .formats import FORMATS, INTERPRETATIONS, KINDS, ImageError, Kind, reason, require_writable, vips
from .icc import from_srgb, is_srgb, to_srgb
from .picture import Picture, read_header
from .rgb import BT601

log = logging.getLogger(__name__)

SPOOL = ".spool"
PROFILE_FIELD = "icc-profile-data"  # of libvips
MEMORY_BYTES = 128 * 2 ** 20  # of pixels that wait in memory; more wait in a file
STRIP_BYTES = 4 * 2 ** 20
LAYOUT = Layout("<" if sys.byteorder == "little" else ">", big=True)
PIXELS_START = 16  # behind the header
BLOCK_ROWS = 64  # rows that are converted at a time
LANCZOS_REACH = 3  # pixels, of the larger grid
TOP_16 = 65_535


class PixelStore:
    """Pixels (height, width, channels) of uint8 or uint16, written by rows, then read as one picture.

    With a path they lie in that file, an uncompressed BigTIFF, which is created or, having the right size, taken over
    with what it holds. It is written and read in pieces, never mapped whole: the pixels take no memory, and a full
    disk is an OSError.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, path: Path | None = None) -> None:
        self.shape, self.dtype, self.path = shape, np.dtype(dtype), path
        self.row_bytes = shape[1] * shape[2] * self.dtype.itemsize
        self._memory: np.ndarray | None = None
        self._file: int | None = None
        if path is None:
            self._memory = np.zeros(shape, self.dtype)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = no_links(path, os.O_RDWR | os.O_CREAT)
        end = (PIXELS_START + shape[0] * self.row_bytes + 1) // 2 * 2
        directory = self._directory(end)
        size, found = end + len(directory), os.fstat(self._file).st_size
        if found not in (0, size):  # of another run; never an empty one, which another process may be filling
            os.ftruncate(self._file, 0)
        if found != size:
            self._create(size, end, directory)

    def _create(self, size: int, end: int, directory: bytes) -> None:
        """Take the room on the disk now: a full disk shows before hours of work, not after."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)
            else:
                os.ftruncate(self._file, size)
            mark = b"II" if LAYOUT.order == "<" else b"MM"
            self._put(0, mark + struct.pack(LAYOUT.order + "HHHQ", 43, 8, 0, end))
            self._put(end, directory)
        except BaseException:
            self.remove()
            raise

    def _directory(self, end: int) -> bytes:
        """The TIFF directory of the pixels, to stand behind them."""
        height, width, channels = self.shape
        rows = max(STRIP_BYTES // self.row_bytes, 1)
        tops = range(0, height, rows)
        alpha = channels in (2, 4)
        values = {
            256: (LONG8, width), 257: (LONG8, height), 258: (SHORT, *[8 * self.dtype.itemsize] * channels),
            259: (SHORT, 1), 262: (SHORT, 2 if channels > 2 else 1),  # not compressed; RGB or black is 0
            273: (LONG8, *(PIXELS_START + top * self.row_bytes for top in tops)), 277: (SHORT, channels),
            278: (LONG8, rows), 279: (LONG8, *(min(rows, height - top) * self.row_bytes for top in tops)),
            **({338: (SHORT, 2)} if alpha else {}),  # not multiplied into the colours
        }
        entries = {tag: Entry.numbers(LAYOUT, *numbers) for tag, numbers in values.items()}
        return directory_bytes({}, entries, end, LAYOUT)

    def write(self, top: int, rows: np.ndarray) -> None:
        """Store rows (n, width, channels) from row `top` on. Raises OSError."""
        if self._memory is not None:
            self._memory[top:top + len(rows)] = rows
            return
        self._put(PIXELS_START + top * self.row_bytes, np.ascontiguousarray(rows))

    def _put(self, place: int, data: bytes | np.ndarray) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            written = write_at(self._file, rest, place)
            rest, place = rest[written:], place + written

    def array(self) -> np.ndarray:
        """All pixels in memory."""
        if self._memory is not None:
            return self._memory
        self._require_file()
        count = int(np.prod(self.shape))
        return np.fromfile(self.path, self.dtype, count, offset=PIXELS_START).reshape(self.shape)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows [top, bottom), (n, width, channels)."""
        if self._memory is not None:
            return self._memory[top:bottom]
        self._require_file()
        count = (bottom - top) * self.shape[1] * self.shape[2]
        start = PIXELS_START + top * self.row_bytes
        return np.fromfile(self.path, self.dtype, count, offset=start).reshape(bottom - top, *self.shape[1:])

    def picture(self):
        """All pixels as a libvips picture, which reads them as they are needed."""
        if self._memory is None:
            self._require_file()
            return vips().Image.tiffload(os.fsencode(self.path), access="sequential")
        height, width, channels = self.shape
        picture = vips().Image.new_from_memory(self._memory, width, height, channels, FORMATS[self.dtype])
        return picture.copy(interpretation=INTERPRETATIONS[self.dtype][channels])

    def _require_file(self) -> None:
        """Raise FileNotFoundError where the file is no longer the one that was written to: pixels that nobody wrote
        must never become a result."""
        if not self.path.is_file() or not os.path.samestat(os.fstat(self._file), self.path.stat()):
            raise FileNotFoundError(f"the pixels that waited in {self.path} were removed while they were needed")

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Let go of everything, the file included."""
        self.close()
        self._memory = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class StoredRows:
    """The samples of a result as its file holds them: `shape` (height, width, channels) of `dtype`, in the colours of
    the profile `icc`. Those of PNG and TIFF files are read in pieces from the top, others as a whole.

    Raises ImageError for what cannot be read.
    """

    def __init__(self, path: str | Path, max_pixels: int) -> None:
        self.path = Path(path)
        header = read_header(self.path, 0, max_pixels)
        check_size(self.path, header.width, header.height, max_pixels)
        self._options = {"fail_on": "error"} if header.kind == "tif" else {"fail_on": "error", "unlimited": True}
        self._streamed, self._next, self._region, self._pixels = header.kind in ("png", "tif"), 0, None, None
        if self._streamed:
            picture = self._open()
            self.shape = picture.height, picture.width, picture.bands
            self.dtype = next((dtype for dtype, name in FORMATS.items() if name == picture.format), None)
            self.icc = picture.get(PROFILE_FIELD) if picture.get_typeof(PROFILE_FIELD) else None
        else:
            decoded = decode(self.path, max_pixels)
            self._pixels, self.icc = decoded.pixels, decoded.metadata.icc
            self.shape, self.dtype = decoded.pixels.shape, decoded.pixels.dtype

    def _open(self):
        try:
            picture = vips_picture(self.path, access="sequential", **self._options)
        except vips().Error as error:
            raise ImageError(f"{self.path}: cannot be read ({reason(error)})") from error
        self._region, self._next = vips().Region.new(picture), 0
        return picture

    def __call__(self, top: int, count: int) -> np.ndarray:
        """Rows (count, width, channels) from `top` on; quickest in growing order. Raises ImageError."""
        if not self._streamed:
            return self._pixels[top:top + count]
        if top < self._next:
            self._open()
        try:
            data = self._region.fetch(0, top, self.shape[1], count)
        except vips().Error as error:
            raise ImageError(f"{self.path}: cannot be read ({reason(error)})") from error
        self._next = top + count
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


@dataclass(frozen=True)
class ResultOptions:
    """How results are written.

    strip_metadata: nothing but pixels, in sRGB.
    quality: of the lossy kinds, 1 to 100.
    text: what the file says of its making, keys and values; `Software` goes into the field of that name.
    """

    strip_metadata: bool = False
    quality: int = 95
    text: tuple[tuple[str, str], ...] = ()


class ResultFile:
    """A result of `height` x `width` pixels of `picture`, to be written to `path` in the kind of its suffix.

    Rows come by `write_rows`, bands of any height in any order; `finish` encodes them under a temporary name and
    renames it. Until then they wait in memory, or in a raw file: `spool`, which several processes may fill together
    and which stays until `finish` or `discard`, or, where the result is large, one beside the result.

    Raises ImageError for a kind that cannot be written or cannot be so large, and for a folder or disk that cannot
    take it; after a failure of any method `discard` leaves nothing behind.
    """

    def __init__(self, path: str | Path, picture: Picture, height: int, width: int,
                 options: ResultOptions = ResultOptions(), spool: str | Path | None = None) -> None:
        self.path, self.picture, self.height, self.width = Path(path), picture, height, width
        self.options, self.suffix = options, self.path.suffix.lower()
        self.shared = spool is not None
        self.store: PixelStore | None = None
        self.first, self.last = 0, height  # the rows that are to be written
        self._earlier: StoredRows | None = None
        self._check_kind()
        kind = KINDS[self.suffix]
        self.metadata = Metadata() if options.strip_metadata else picture.metadata
        self.dtype = picture.color.dtype if kind.deep else np.dtype(np.uint8)
        self.has_alpha = picture.alpha is not None and kind.alpha
        if self.metadata.icc is not None:
            self._drop_profile_without_place(kind)
        icc = self.metadata.icc
        self.profile = icc if icc is not None and not is_srgb(icc) else None
        if picture.alpha is not None and not kind.alpha:
            log.info("%s: %s files have no transparency, the picture is laid over white", self.path, self.suffix)
        if picture.color.dtype != self.dtype:
            log.info("%s: %s files hold 8 bits a sample here, the picture has 16 bits", self.path, self.suffix)
        shape = (height, width, (1 if picture.is_gray else 3) + self.has_alpha)
        with self._one_line_errors():
            self._check_folder()
            large = height * width * shape[2] * self.dtype.itemsize > MEMORY_BYTES
            own = temporary_beside(self.path).with_suffix(SPOOL) if large else None
            self.store = PixelStore(shape, self.dtype, Path(spool) if self.shared else own)

    def _check_kind(self) -> None:
        require_writable(self.path)
        limit = KINDS[self.suffix].max_side
        if limit is not None and max(self.height, self.width) > limit:
            raise ImageError(f"{self.path}: cannot be written ({self.width}x{self.height} pixels; {self.suffix} files "
                             f"end at {limit} a side, .png and .tif take it)")

    def _drop_profile_without_place(self, kind: Kind) -> None:
        """Without it the picture is stored in sRGB, as it was computed."""
        fits = not self.picture.is_gray or (kind.gray_alpha if self.has_alpha else kind.gray)
        if kind.profile and not fits:
            what = "gray with transparency" if self.has_alpha else "gray"
            log.info("%s: %s files hold %s as RGB, beside which its colour profile cannot stand: sRGB", self.path,
                     self.suffix, what)
        if not (kind.profile and fits):
            self.metadata = self.metadata.in_srgb()

    def _check_folder(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise IsADirectoryError("a folder of this name is there")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write into {self.path.parent}")

    def lay_over(self, earlier: StoredRows, first: int, last: int,
                 weights: Callable[[int, int], np.ndarray]) -> None:
        """Keep the samples of an earlier result but in rows [first, last), which alone are to be written: each of those
        is mixed into the earlier one by `weights(top, rows)` (rows, width) in [0, 1]. Where that is 0, and in all other
        rows, samples stay exactly as they are.

        Raises ImageError for a result with other samples than this one gets.
        """
        if earlier.shape != self.store.shape or earlier.dtype != self.store.dtype or earlier.icc != self.metadata.icc:
            raise ImageError(f"{earlier.path}: {_samples(earlier.shape, earlier.dtype, earlier.icc)}, but {self.path} "
                             f"gets {_samples(self.store.shape, self.store.dtype, self.metadata.icc)}: give it the "
                             "same kind of file (--ext), and --strip_metadata to both or neither")
        self._earlier, self._weights, self.first, self.last = earlier, weights, first, last

    def _mixed(self, top: int, pixels: np.ndarray) -> np.ndarray:
        """Converted rows from `top` on, mixed into those of the earlier result."""
        old = self._earlier(top, len(pixels))
        weight = self._weights(top, len(pixels))[:, :, None].astype(np.float32)
        mixed = old + weight * (pixels.astype(np.float32) - old)
        return np.where(weight > 0, mixed.round().astype(self.dtype), old)

    def _copy_earlier(self) -> None:
        """The rows that were not to be written."""
        for start, end in ((0, self.first), (self.last, self.height)):
            for top in range(start, end, BLOCK_ROWS):
                self.store.write(top, self._earlier(top, min(BLOCK_ROWS, end - top)))

    def write_rows(self, top: int, restored: Tensor) -> None:
        """Store rows from `top` on: `restored` (3, rows, width), float, sRGB in [0, 1] (clamped). Raises ImageError."""
        rows = restored.shape[1]
        if restored.shape != (3, rows, self.width) or top < 0 or top + rows > self.height:
            raise UserError(f"rows {top} to {top + rows} of shape {tuple(restored.shape)} do not fit into a result of "
                             f"{self.width}x{self.height} pixels")
        with self._one_line_errors():
            # blocks of a fixed grid, so that the alpha of a row never depends on the band it came with
            for block in range(top // BLOCK_ROWS * BLOCK_ROWS, top + rows, BLOCK_ROWS):
                first, last = max(block, top), min(block + BLOCK_ROWS, top + rows)
                part = restored[:, first - top:last - top].detach().float().cpu().clamp(0, 1)
                alpha = None
                if self.picture.alpha is not None:
                    alpha = self._alpha(block)[first - block:last - block]
                pixels = self._converted(part, alpha)
                self.store.write(first, pixels if self._earlier is None else self._mixed(first, pixels))

    def _alpha(self, top: int) -> np.ndarray:
        """Alpha (rows, width) in [0, 1] of the block that starts at row `top`: Lanczos from the picture's."""
        source = self.picture.alpha
        scale = source.shape[0] / self.height
        bottom = min(top + BLOCK_ROWS, self.height)
        margin = ceil(LANCZOS_REACH * max(scale, 1)) + 1
        first, last = max(floor(top * scale) - margin, 0), min(ceil(bottom * scale) + margin, source.shape[0])
        crop = Image.fromarray(source[first:last].astype(np.float32) / np.iinfo(source.dtype).max)
        box = (0, top * scale - first, source.shape[1], min(bottom * scale - first, last - first))
        return np.asarray(crop.resize((self.width, bottom - top), Image.Resampling.LANCZOS, box=box)).clip(0, 1)

    def _converted(self, color: Tensor, alpha: np.ndarray | None) -> np.ndarray:
        """Pixels (rows, width, channels) as the file holds them, of colours (3, rows, width) and alpha in [0, 1]."""
        if self.picture.is_gray:
            color = (color * torch.tensor(BT601).view(3, 1, 1)).sum(0, keepdim=True)
        if alpha is not None and not self.has_alpha:
            weight = torch.from_numpy(alpha)
            color = color * weight + (1 - weight)
        values = color.permute(1, 2, 0).numpy()
        top = np.iinfo(self.dtype).max
        if self.profile is None:
            pixels = _levels(values, top, self.dtype)
        else:
            pixels = from_srgb(_levels(values, TOP_16, np.dtype(np.uint16)), self.profile)
            if top != TOP_16:
                pixels = _levels(pixels / np.float32(TOP_16), top, self.dtype)
        if self.has_alpha:
            pixels = np.concatenate((pixels, _levels(alpha, top, self.dtype)[:, :, None]), axis=2)
        return pixels

    @property
    def lies_on_white(self) -> bool:
        """Whether the picture is transparent and the file cannot be."""
        return self.picture.alpha is not None and not self.has_alpha

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Colours (3, height, width), float32 sRGB in [0, 1], as the file will hold them (lossy kinds: before they are
        encoded): with this a result is a `PictureSource`."""
        pixels = self.store.rows(top, top + height)[:, left:left + width, :1 if self.picture.is_gray else 3]
        if self.profile is not None:
            pixels = to_srgb(np.ascontiguousarray(pixels), self.profile)
        values = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / np.iinfo(pixels.dtype).max
        return values.expand(3, -1, -1)

    def say(self, words: str) -> None:
        """Add to the line of the settings that the file will hold, where it holds one."""
        text = tuple((key, f"{line} {words}" if key == SETTINGS else line) for key, line in self.options.text)
        self.options = replace(self.options, text=text)

    def finish(self) -> None:
        """Encode, rename, and remove what was temporary. Raises ImageError; a given `spool` stays then."""
        labels = Labels.of(self.metadata, () if self.options.strip_metadata else self.options.text, self.path)
        with self._one_line_errors(), replacing(self.path) as temporary:
            if self._earlier is not None:
                self._copy_earlier()
            encode(self.store, temporary, self.suffix, labels, self.options.quality)
        self.store.remove()

    def close(self) -> None:
        """Let go of the files for another process to finish; the spool stays."""
        self.store.close()

    def discard(self) -> None:
        """Remove everything that was temporary; what was at `path` before stays."""
        self.store.remove()

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except ImageError:  # of an earlier result
            self._give_up()
            raise
        except (OSError, ValueError) as error:
            self._give_up()
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ImageError(f"{self.path}: cannot be written ({text.splitlines()[0] if text else 'unknown'})"
                             ) from error
        except vips().Error as error:
            self._give_up()
            raise ImageError(f"{self.path}: cannot be written ({reason(error)})") from error

    def _give_up(self) -> None:
        """After a failure: a spool that was given holds the work of others and is left to them."""
        if not self.shared and self.store is not None:
            self.store.remove()


def _samples(shape: tuple[int, int, int], dtype: np.dtype | None, icc: bytes | None) -> str:
    """What a file's samples are, in words."""
    bits = "samples of another kind" if dtype is None else f"{8 * dtype.itemsize} bits"
    colors = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGB with alpha"}.get(shape[2], f"{shape[2]} channels")
    return f"{shape[1]}x{shape[0]} pixels, {bits}, {colors}, {'no profile' if icc is None else 'a colour profile'}"


def _levels(values: np.ndarray, top: int, dtype: np.dtype) -> np.ndarray:
    """Values in [0, 1] as integers of 0 to `top`, rounded."""
    return (values * np.float32(top)).round().astype(dtype)
