"""Pictures as plain tensors: a file in as RGB over white, a tensor out, whole or not at all.

Files with all they hold are read by `picture.py` and written by `result_file.py`.
"""
from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .formats import ImageError
from .picture import MAX_PIXELS, read_picture

LEVELS_8 = 255.0
JPEG_QUALITY = 95


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A picture as (3, H, W) float32 sRGB in [0, 1], turned as its EXIF orientation says, transparency over white.

    Of an animation or several pages the first. Raises ImageError as `read_picture` does.
    """
    picture = read_picture(path, max_pixels)
    image = picture.region(0, 0, picture.height, picture.width)
    if picture.alpha is None:
        return image
    weight = torch.from_numpy(picture.alpha.astype(np.float32) / np.iinfo(picture.alpha.dtype).max)
    return image.sub_(1).mul_(weight).add_(1)


def to_pillow(image: Tensor) -> Image.Image:
    """A tensor (3, H, W) in [0, 1] as an 8-bit RGB picture."""
    pixels = image.detach().float().cpu().clamp(0, 1).mul(LEVELS_8).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def write_image(path: str | Path, image: Tensor) -> None:
    """Write (3, H, W) in [0, 1] in the format of the suffix; under a temporary name first, then renamed.

    Raises ImageError naming the file; nothing half-written is left behind.
    """
    save_picture(to_pillow(image), path)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a Pillow picture as `write_image` does."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    options = {"quality": JPEG_QUALITY} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        picture.save(buffer, Image.registered_extensions().get(path.suffix.lower()), **options)
        temporary.write_bytes(buffer.getbuffer())  # Pillow itself overlooks what a full disk does not take
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
