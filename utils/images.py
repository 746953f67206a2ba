"""The one reader and writer of pictures: files in, RGB tensors out, and back, whole or not at all."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
LEVELS_8, LEVELS_16 = 255.0, 65535.0
JPEG_QUALITY = 95


class ImageError(ValueError):
    """A picture file that cannot be read or written; one line with the file and the reason."""


def read_image(path: str | Path) -> Tensor:
    """A picture as (3, H, W) float32 RGB in [0, 1], turned as its EXIF orientation says.

    Gray, palette and CMYK pictures become RGB, transparency is laid over white, 16-bit gray keeps its depth.
    Raises ImageError naming the file: missing, empty, truncated, no picture, too large.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty")
        with Image.open(path) as file:
            file.load()
            return _to_tensor(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture in a format that can be read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too many pixels ({error})") from error
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow raises all three for damaged files
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _to_tensor(picture: Image.Image) -> Tensor:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit and 32-bit gray
        values = np.asarray(picture, dtype=np.float32)
        top = LEVELS_16 if picture.mode.startswith("I") else 1.0
        gray = torch.from_numpy(values / top).clamp(0, 1)
        return gray.expand(3, *gray.shape).clone()
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        background = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(background, picture)
    values = np.array(picture.convert("RGB"))
    return torch.from_numpy(values).permute(2, 0, 1).float() / LEVELS_8


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
        picture.save(temporary, **options)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
