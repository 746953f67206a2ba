"""Cut classes out of photographs: `python -m dataloader.assemble.class_set --photos trainset/photos`.

`--boxes` (default: class_boxes.txt beside this file) lists parts of photographs that one stuff fills. Each becomes a
picture OUTPUT/train/CLASS/LINE.png, LINE being its line in the list, reduced so that its stuff is sharp and can be
recognised in a crop; the end of its longer side is kept from training, that of other boxes too, and becomes
OUTPUT/held_out/CLASS/LINE.png:

    python -m dataloader.assemble.class_set --photos trainset/photos --output trainset_c2i
    python train.py --stage c2i --data trainset_c2i/train --val_data trainset_c2i/held_out
"""
from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePosixPath

from PIL import Image

from dataloader.entries import Entry, read_entry
from dataloader.photo_crops import MIRRORED
from pictures.picture import read_header
from pictures.rgb import save_picture
from utils.errors import UserError, guarded
from utils.files import require_folder
from utils.flags import OneLineParser

BOX_LIST = Path(__file__).with_name("class_boxes.txt")
TRAINING, HELD_OUT = "train", "held_out"
CROP = 128  # pixels, of the model that is trained on them
OWN_NAME = re.compile(r"\d{3,}\.png")  # `Box.file_name`
HELD_OUT_PART = 4  # of the longer side, the last one of so many parts, at least a crop long
SMALLEST_DIVIDED = 5 * CROP // 2  # of the longer side: below that nothing is held out
STRIDE = CROP // 8  # crops that are closer to one another count as one
HALVED = 2  # crops are cut at full and at half size (`ClassCrops`)
WHOLE = 100  # per cent

Edges = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Box:
    """A part of a photograph that a class's stuff fills.

    line: in the list, from 1 on. photo: below the folder of photographs. edges: left, top, right and bottom in whole
    per cent of its sides. reduction: how many times it is reduced.
    """

    line: int
    label: str
    photo: PurePosixPath
    edges: Edges
    reduction: int

    @property
    def file_name(self) -> str:
        """Of the picture that is cut out."""
        return f"{self.line:03d}.png"

    def pixels(self, width: int, height: int) -> Edges:
        """Its edges in pixels of a photograph of that size."""
        left, top, right, bottom = self.edges
        return left * width // WHOLE, top * height // WHOLE, right * width // WHOLE, bottom * height // WHOLE

    def cut(self, photo: Image.Image) -> Image.Image:
        """The part of the photograph, reduced."""
        return photo.crop(self.pixels(*photo.size)).reduce(self.reduction)

    def divided(self, width: int, height: int) -> tuple[Edges, Edges | None]:
        """Of a photograph of that size, the edges in pixels of what is for training and of what is held out."""
        left, top, right, bottom = self.pixels(width, height)
        reduced = (-(-side // self.reduction) for side in (right - left, bottom - top))  # as Pillow does

        def of_photo(part: Edges) -> Edges:
            x1, y1, x2, y2 = (edge * self.reduction for edge in part)
            return left + x1, top + y1, min(left + x2, right), min(top + y2, bottom)
        training, held_out = division(*reduced)
        return of_photo(training), held_out and of_photo(held_out)


def read_boxes(path: Path) -> list[Box]:
    """Boxes from lines `class path left top right bottom reduction`; `#` starts a comment line. Raises UserError with
    the number of a malformed line."""
    boxes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            boxes.append(_parse(path, number, line))
    if not boxes:
        raise UserError(f"{path} lists no boxes")
    return boxes


def _parse(path: Path, number: int, line: str) -> Box:
    words = line.split()
    if len(words) == 7 and all(word.isdecimal() for word in words[2:]):
        left, top, right, bottom, reduction = map(int, words[2:])
        photo = PurePosixPath(words[1])
        inside = not photo.is_absolute() and ".." not in photo.parts
        if inside and left < right <= WHOLE and top < bottom <= WHOLE and reduction >= 1:
            return Box(number, words[0], photo, (left, top, right, bottom), reduction)
    raise UserError(f"{path}, line {number}: expected `class path left top right bottom reduction` with edges in whole "
                    f"per cent, got {line!r}")


def division(width: int, height: int) -> tuple[Edges, Edges | None]:
    """The part of a picture for training and the one that is held out, side by side; None where it is too small for
    two."""
    side = max(width, height)
    if side < SMALLEST_DIVIDED:
        return (0, 0, width, height), None
    cut = side - max(side // HELD_OUT_PART, CROP)
    if width >= height:
        return (0, 0, cut, height), (cut, 0, width, height)
    return (0, 0, width, cut), (0, cut, width, height)


def divided(part: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The pictures of `division`."""
    training, held_out = division(*part.size)
    return part.crop(training), held_out and part.crop(held_out)


def distinct_crops(width: int, height: int) -> int:
    """Crops of a picture, mirrored ones included, that lie at least STRIDE pixels apart or differ in size."""
    count = 0
    for reduction in (1, HALVED):
        room = [side // reduction - CROP for side in (width, height)]
        if min(room) >= 0:
            count += MIRRORED * (room[0] // STRIDE + 1) * (room[1] // STRIDE + 1)
    return count


def check(photos: Path, boxes: Iterable[Box]) -> None:
    """Raise UserError for a missing photograph, a box whose picture would be smaller than a crop, or one whose held-out
    end another box trains on."""
    boxes = list(boxes)
    missing = sorted({str(box.photo) for box in boxes if not (photos / box.photo).is_file()})
    if missing:
        raise UserError(f"{len(missing)} photographs are not below {photos}, the first is {missing[0]}: "
                        "`python -m dataloader.assemble.photos` assembles them")
    sizes = {}
    for box in boxes:
        header = read_header(photos / box.photo)
        sizes[box.photo] = header.width, header.height
        left, top, right, bottom = box.pixels(header.width, header.height)
        width, height = (right - left) // box.reduction, (bottom - top) // box.reduction
        if min(width, height) < CROP:
            raise UserError(f"line {box.line}: {width}x{height} pixels of {box.photo} are smaller than a crop of "
                            f"{CROP}: enlarge the box or lower its reduction")
    for kept, trained in leaks(boxes, sizes):
        raise UserError(f"line {kept.line}: its held-out end lies in what line {trained.line} trains on: move an edge")


def leaks(boxes: Iterable[Box], sizes: Mapping[PurePosixPath, tuple[int, int]]) -> Iterator[tuple[Box, Box]]:
    """Pairs of boxes of one photograph, the first's held-out end and the second's part for training overlapping.
    sizes: width and height of the photographs."""
    by_photo = defaultdict(list)
    for box in boxes:
        by_photo[box.photo].append((box, *box.divided(*sizes[box.photo])))
    for members in by_photo.values():
        for (first, _, held_out), (second, training, _) in permutations(members, 2):
            if held_out is not None and _overlap(held_out, training):
                yield first, second


def _overlap(first: Edges, second: Edges) -> bool:
    return all(max(first[i], second[i]) < min(first[i + 2], second[i + 2]) for i in (0, 1))


def cut_classes(photos: Path, boxes: Iterable[Box], output: Path) -> Iterator[tuple[Box, int, int]]:
    """Write every box's pictures below `output`; yields it with its distinct crops for training and held-out ones. In
    the end those of other boxes, which an earlier run wrote there, go.

    Raises ImageError for a photograph that cannot be read.
    """
    by_photo, written = defaultdict(list), set()
    for box in boxes:
        by_photo[box.photo].append(box)
    for name, members in by_photo.items():
        photo = read_entry(Entry(photos / name))
        for box in members:
            training, held_out = divided(box.cut(photo))
            for part, picture in ((TRAINING, training), (HELD_OUT, held_out)):
                if picture is not None:
                    path = output / part / box.label / box.file_name
                    save_picture(picture, path)
                    written.add(path)
            yield box, distinct_crops(*training.size), distinct_crops(*held_out.size) if held_out else 0
    _forget_others(output, written)


def _forget_others(output: Path, written: set[Path]) -> None:
    """Take away pictures of other boxes, and classes that have none left."""
    for part in (TRAINING, HELD_OUT):
        for old in set((output / part).glob("*/*.png")) - written:
            if OWN_NAME.fullmatch(old.name):
                old.unlink()
                with suppress(OSError):  # there are others in it
                    old.parent.rmdir()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--photos", type=Path, default=Path("trainset/photos"), help="what dataloader.assemble.photos assembled "
                                                                      "(trainset/photos)")
    add("--boxes", type=Path, default=BOX_LIST, help="list of boxes (class_boxes.txt beside this program)")
    add("--output", type=Path, default=Path("trainset_c2i"), help="result folder (trainset_c2i)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, cut, report."""
    args = build_parser().parse_args(argv)
    return guarded("class_set", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    """Cut and report; nothing is written where the list and the photographs do not fit."""
    require_folder("--output", args.output)
    boxes = read_boxes(args.boxes)
    check(args.photos, boxes)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for box, training, held_out in cut_classes(args.photos, boxes, args.output):
        for i, count in enumerate((1, training, held_out)):
            counts[box.label][i] += count
    for label, (pictures, training, held_out) in sorted(counts.items()):
        print(f"{label}: {pictures} pictures, {training} distinct crops, {held_out} held out")
    print(f"{len(boxes)} pictures in {len(counts)} classes written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
