"""Pictures as plain tensors: a file in as RGB over white, a tensor out, whole or not at all, and bicubic resizing.

Files with all they hold are read by `picture.py` and written by `result_file.py`. Any part of a picture is enlarged
or reduced to what that part of the whole picture's enlargement or reduction is.
"""
from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.device import require_floats
from utils.errors import UserError
from utils.files import replacing

from .formats import ImageError, register_plugins, require_writable
from .picture import MAX_PIXELS, Picture, read_picture

LEVELS_8 = 255.0
BT601 = (0.299, 0.587, 0.114)  # luma of R, G and B (ITU-R BT.601)
JPEG_QUALITY = 95
MAX_SCALE = 16.0
REACH = 4  # pixels beside a region, in the coarser grid, that its bicubic samples can touch, with room to spare
BICUBIC_A = -0.5  # of the cubic kernel (Keys, 1981), as Pillow has it


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A picture as (3, H, W) float32 sRGB in [0, 1], turned as its EXIF orientation says, transparency over white.

    Of an animation or several pages the first. Raises ImageError as `read_picture` does.
    """
    return over_white(read_picture(path, max_pixels))


def over_white(picture: Picture) -> Tensor:
    """A whole picture as (3, H, W) float32 in [0, 1], transparency over white."""
    return laid_over_white(picture.region(0, 0, picture.height, picture.width), picture)


def laid_over_white(image: Tensor, picture: Picture) -> Tensor:
    """Colours (3, H, W) in [0, 1] of a picture, of its size or enlarged, as they look over white: by its alpha,
    enlarged by Lanczos as in a result's file. In place; of a picture without transparency the colours as they are."""
    if picture.alpha is None:
        return image
    height, width = image.shape[-2:]
    alpha = Image.fromarray(picture.alpha.astype(np.float32) / np.iinfo(picture.alpha.dtype).max)
    weight = np.asarray(alpha.resize((width, height), Image.Resampling.LANCZOS)).clip(0, 1)
    return image.sub_(1).mul_(torch.from_numpy(weight)).add_(1)


def luma_levels(image: Tensor) -> Tensor:
    """Luma (h, w) in levels of a picture (3, h, w) in [0, 1]."""
    return (image * torch.tensor(BT601).view(3, 1, 1)).sum(0) * LEVELS_8


def _require_picture(image: Tensor) -> None:
    """Raise UserError for a tensor that is no picture (3, H, W) of floats with sides of at least 1."""
    if image.ndim != 3 or len(image) != 3 or 0 in image.shape:
        raise UserError(f"picture: a tensor of shape {tuple(image.shape)}, must be (3, height, width)")
    require_floats("picture", image)


def to_pillow(image: Tensor) -> Image.Image:
    """A tensor (3, H, W) in [0, 1] as an 8-bit RGB picture. Raises UserError for other shapes and whole numbers."""
    _require_picture(image)
    pixels = image.detach().float().cpu().clamp(0, 1).mul(LEVELS_8).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def write_image(path: str | Path, image: Tensor) -> None:
    """Write (3, H, W) in [0, 1] in the kind of the suffix, one of `formats.WRITABLE`; under a temporary name first,
    then renamed.

    Raises ImageError naming the file, UserError for a tensor that is no picture; nothing half-written is left behind.
    """
    save_picture(to_pillow(image), path)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a Pillow picture as `write_image` does."""
    path = Path(path)
    require_writable(path)
    register_plugins()
    options = {"quality": JPEG_QUALITY} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        picture.save(buffer, Image.registered_extensions().get(path.suffix.lower()), **options)
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())  # Pillow itself overlooks what a full disk does not take
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({error})") from error


class PictureSource(Protocol):
    """Where LR pixels come from: a `Picture`, or a `TensorSource`."""

    height: int
    width: int

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Pixels (3, height, width), float32 in [0, 1]."""


class TensorSource:
    """An LR picture (3, h, w) in [0, 1] in memory. Raises UserError for other shapes and whole numbers."""

    def __init__(self, picture: Tensor) -> None:
        _require_picture(picture)
        self.picture = picture.detach()
        self.height, self.width = picture.shape[-2:]

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Pixels (3, height, width), float32 on the CPU."""
        return self.picture[:, top:top + height, left:left + width].float().cpu()


def _span(first: int, count: int, ratio: float, length: int) -> tuple[int, int, float, float]:
    """Source pixels [low, high) behind `count` results from `first` on, and the exact place in them."""
    reach = math.ceil(REACH * max(ratio, 1.0))
    low = max(math.floor(first * ratio) - reach, 0)
    high = min(math.ceil((first + count) * ratio) + reach, length)
    return low, high, max(first * ratio - low, 0.0), min((first + count) * ratio - low, high - low)


def upsample_region(source: PictureSource, size: tuple[int, int], top: int, left: int, height: int,
                    width: int) -> Tensor:
    """Part (3, height, width) at (top, left) of `source` resized to `size` (H, W) by Pillow's bicubic, in [0, 1]."""
    return _resized_region(source, size, top, left, height, width).clamp_(0, 1)


def reduce_region(source: PictureSource, size: tuple[int, int], top: int, left: int, height: int,
                  width: int) -> Tensor:
    """Part (3, height, width) at (top, left) of `source` reduced to `size` (h, w), not clamped.

    By Pillow's bicubic on single-precision channels: each side by itself, the kernel widened by the ratio, so that it
    does not alias; at the edges of the picture its weights are those of the pixels there are, scaled to sum to one.
    """
    return _resized_region(source, size, top, left, height, width)


def bicubic(x: np.ndarray) -> np.ndarray:
    """The kernel that both use, at distances in pixels of the coarser grid."""
    x, a = np.abs(x), BICUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x < 1, near, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))


def _resized_region(source: PictureSource, size: tuple[int, int], top: int, left: int, height: int,
                    width: int) -> Tensor:
    y0, y1, box_top, box_bottom = _span(top, height, source.height / size[0], source.height)
    x0, x1, box_left, box_right = _span(left, width, source.width / size[1], source.width)
    crop = source.region(y0, x0, y1 - y0, x1 - x0).numpy()
    box = (box_left, box_top, box_right, box_bottom)
    channels = [np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), Image.BICUBIC, box))
                for channel in crop]
    return torch.from_numpy(np.stack(channels))


def upsample(lr: Tensor, scale: float) -> Tensor:
    """Bicubic resize of (3, h, w) by `scale`: (3, round(h·scale), round(w·scale)) in [0, 1], at least one pixel."""
    height, width = result_size(TensorSource(lr), scale)
    return upsample_region(TensorSource(lr), (height, width), 0, 0, height, width)


def result_size(source: PictureSource, scale: float) -> tuple[int, int]:
    """(height, width) of a picture enlarged by `scale`, at least one pixel a side."""
    return max(round(source.height * scale), 1), max(round(source.width * scale), 1)


def enlarged(source: PictureSource, size: tuple[int, int]) -> Tensor:
    """The LR picture, bicubically at a result's size, in [0, 1]: what the result is compared with."""
    return upsample_region(source, size, 0, 0, *size)
