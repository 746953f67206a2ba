"""Recreate the sample set: `python -m dataloader.assemble.sample_set --output testset/sample`.

HR pictures are cut from photographs that are held out of training (held_out.txt) and from scikit-image's own sample
pictures; their LR pictures are made by the degradation, seeded per picture.
"""
from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.errors import UserError, guarded

from ..degradation import LEVELS, Degradation
from ..entries import read_rgb
from .photos import HELD_OUT, PHOTO_LIST, assemble
from .sources import PackagedPhoto, read_names, read_photo_list

log = logging.getLogger(__name__)

SEED = 200  # picture i is degraded with seed SEED + i
SIDE_STEP = 8  # pixels; sides of HR pictures are multiples


@dataclass(frozen=True)
class Sample:
    """One picture of the set: a source file, reduced `factor` times by averaging, then cut."""

    name: str
    source: str  # file name of a held-out photograph or of a picture of scikit-image
    size: tuple[int, int]  # width, height of the HR picture
    factor: int = 1
    corner: tuple[int, int] = (0, 0)  # left, top of the cut, in reduced pixels


SAMPLES = (
    Sample("astronaut", "astronaut.png", (512, 512)),
    Sample("brushes", "Picture_1A_by_freespace.jpg", (512, 512), factor=2, corner=(0, 12)),
    Sample("cat", "chelsea.png", (448, 296)),
    Sample("coffee", "coffee.png", (600, 400)),
    Sample("dandelion", "seeding_by_Clements_Engelhardt.jpg", (512, 512), factor=5, corner=(90, 30)),
    Sample("dogs", "friends_by_Aitzol_Berasategi.jpg", (448, 640), factor=3, corner=(120, 200)),
    Sample("fig", "Picture_0B_by_freespace.jpg", (640, 448), factor=3, corner=(150, 80)),
    Sample("mountain", "aitzgorri_by_Aitzol_Berasategi.jpg", (640, 448), factor=3, corner=(390, 60)),
    Sample("planks", "friends_by_Aitzol_Berasategi.jpg", (512, 512), factor=2, corner=(0, 960)),
    Sample("rocket", "rocket.jpg", (640, 424)),
)


def held_out_photos() -> list[PackagedPhoto]:
    """The listed photographs that stay out of training."""
    names = read_names(HELD_OUT)
    return [photo for photo in read_photo_list(PHOTO_LIST) if photo.name in names]


def scikit_image_folder() -> Path:
    """Where the installed scikit-image keeps its sample pictures. Raises FileNotFoundError without it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("scikit-image is not installed, its sample pictures are needed: "
                                "`pip install scikit-image`")
    return Path(spec.origin).parent / "data"


def cut(sample: Sample, file: Path) -> Image.Image:
    """The HR picture. Raises ValueError when the source is too small for the cut."""
    image = read_rgb(file)
    if sample.factor > 1:
        image = image.reduce(sample.factor)
    (left, top), (width, height) = sample.corner, sample.size
    if left + width > image.width or top + height > image.height or width % SIDE_STEP or height % SIDE_STEP:
        raise UserError(f"{sample.name}: a cut of {width}x{height} at {left},{top} does not fit "
                         f"{file.name} reduced to {image.width}x{image.height} (sides in steps of {SIDE_STEP})")
    return image.crop((left, top, left + width, top + height))


def make_pair(sample: Sample, file: Path, seed: int) -> tuple[Image.Image, Image.Image]:
    """The HR picture and its LR picture, degraded with a seed."""
    hr = cut(sample, file)
    pixels = torch.from_numpy(np.array(hr)).permute(2, 0, 1)[None].float() / LEVELS
    lr = Degradation()(pixels, torch.Generator().manual_seed(seed))[0]
    return hr, Image.fromarray(lr.mul(LEVELS).round().byte().permute(1, 2, 0).contiguous().numpy())


def make(output: Path, files: dict[str, Path], seed: int = SEED) -> None:
    """Write HR and LR of every sample as PNG below `output`; `files` maps the sources' names to files."""
    for folder in ("HR", "LR"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(SAMPLES):
        hr, lr = make_pair(sample, files[sample.source], seed + index)
        hr.save(output / "HR" / f"{sample.name}.png", optimize=True)
        lr.save(output / "LR" / f"{sample.name}.png", optimize=True)
        log.info("%s: %dx%d from %dx%d", sample.name, *lr.size, *hr.size)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("testset/sample"))
    parser.add_argument("--debs", type=Path, help="folder of downloaded .deb files, used instead of apt-get")
    parser.add_argument("--seed", type=int, default=SEED, help="of the degradation (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, gather the sources, make the set; 1 when a source is missing."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        photos = held_out_photos()
        result = assemble(photos, Path(folder), debs=args.debs)
        for problem in result.problems:
            print(f"sample_set: {problem}", file=sys.stderr)
        if result.problems:
            return 1
        try:
            built_in = scikit_image_folder()
            files = {photo.name: Path(folder, photo.local_path) for photo in photos}
            files |= {sample.source: built_in / sample.source for sample in SAMPLES if sample.source not in files}
            make(args.output, files, args.seed)
        except (OSError, ValueError) as error:
            print(f"sample_set: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded("sample_set", main))
