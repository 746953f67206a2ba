"""Pack crops of large photographs into small shards: `python -m dataloader.assemble.crop_pack --data trainset/photos`.

For machines that large photographs cannot be brought to: each shard is a plain tar file of pictures, small enough to
send, and `--data PACKS` trains on a folder of them. The crops are drawn as in training, at several scales.
"""
from __future__ import annotations

import argparse
import io
import logging
import sys
import tarfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError, guarded
from utils.files import replacing
from utils.flags import OneLineParser, bounded

from ..photo_crops import PhotoCrops

MEGA = 1_000_000
JPEG, AVIF = FORMATS = ("jpeg", "avif")
ENCODING = {JPEG: {"quality": 95, "subsampling": 0}, AVIF: {"quality": 90, "subsampling": "4:4:4"}}
SUFFIX = {JPEG: ".jpg", AVIF: ".avif"}
TAR_BLOCK = 512  # bytes; a member takes a header block and whole blocks of content
TAR_RECORD = 20 * TAR_BLOCK  # an archive takes whole records, the last with at least two empty blocks
SEED = 0


def encode(crop: np.ndarray, format_: str = JPEG) -> bytes:
    """A crop (S, S, 3) uint8 in one of FORMATS, without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, format_, **ENCODING[format_])
    return buffer.getvalue()


def write_shards(pictures: Iterable[bytes], folder: Path, limit: int, suffix: str = SUFFIX[JPEG]) -> list[Path]:
    """Write encoded pictures into numbered shards of at most `limit` bytes each; a shard appears when it is complete,
    and those of an earlier run beyond the last one go.

    Raises ValueError for a picture that no shard of that size can hold, OSError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = [_write_shard(group, _shard(folder, number), first, suffix)
              for number, (first, group) in enumerate(_groups(pictures, limit))]
    for number in count(len(shards)):
        if not (old := _shard(folder, number)).exists():
            return shards
        old.unlink()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"crops-{number:03d}.tar"


def _groups(pictures: Iterable[bytes], limit: int) -> Iterator[tuple[int, list[bytes]]]:
    """Pictures that fill a shard, with the number of the first."""
    group: list[bytes] = []
    first, size = 0, 0
    for number, picture in enumerate(pictures):
        needed = TAR_BLOCK + -(-len(picture) // TAR_BLOCK) * TAR_BLOCK
        if needed + TAR_RECORD > limit:
            raise UserError(f"picture {number} takes {needed + TAR_RECORD} bytes in a shard of at most {limit}: "
                             "allow larger shards or cut smaller crops")
        if size + needed + TAR_RECORD > limit:
            yield first, group
            group, first, size = [], number, 0
        group.append(picture)
        size += needed
    if group:
        yield first, group


def _write_shard(pictures: list[bytes], path: Path, first: int, suffix: str) -> Path:
    with replacing(path) as unfinished, tarfile.open(unfinished, "w") as shard:
        for number, picture in enumerate(pictures, start=first):
            member = tarfile.TarInfo(f"{number:06d}{suffix}")
            member.size = len(picture)
            shard.addfile(member, io.BytesIO(picture))
    return path


def main(argv: list[str] | None = None) -> int:
    """Parse, cut, pack, report."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="trainset/photos", help="a folder, text file or shard of photographs")
    parser.add_argument("--output", type=Path, default=Path("trainset/packs"), help="folder for the shards")
    parser.add_argument("--count", type=bounded(int, 1), default=6000, help="crops (default: %(default)s)")
    parser.add_argument("--size", type=bounded(int, 1), default=256,
                        help="their side; training cuts its windows out of them (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default=JPEG,
                        help="avif: 60 %% of the size, many times the time to write (default: %(default)s)")
    parser.add_argument("--megabytes", type=bounded(float, 0, open_low=True), default=15, help="largest shard")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return guarded("crop_pack", lambda: _pack(args))


def _pack(args: argparse.Namespace) -> int:
    """Cut, pack, report."""
    crops = PhotoCrops(args.data, args.size, symmetries=1)
    pictures = (encode(crops.sample(number, SEED)[0], args.format) for number in range(args.count))
    shards = write_shards(pictures, args.output, round(args.megabytes * MEGA), SUFFIX[args.format])
    total = sum(shard.stat().st_size for shard in shards)
    print(f"{args.count} crops of {args.size}x{args.size} in {len(shards)} shards below {args.output}, "
          f"{total / MEGA:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
