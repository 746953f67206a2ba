"""Sort pictures into class folders: `python -m dataloader.assemble.class_set --pictures trainset/textures`.

`--classes` (default: classes.txt beside this file) says which file belongs to which class.
"""
from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from utils.errors import UserError, guarded

CLASS_LIST = Path(__file__).with_name("classes.txt")


def read_classes(path: Path) -> dict[str, list[str]]:
    """File names by class from lines `class: file file ...`; `#` starts a comment line. Raises ValueError."""
    classes: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, files = line.partition(":")
        if not colon or not files.split():
            raise UserError(f"{path}, line {number}: expected `class: file file ...`, got {line!r}")
        classes[name.strip()] = files.split()
    return classes


def sort_into_classes(pictures: Path, classes: dict[str, list[str]], output: Path) -> list[str]:
    """Copy every listed file, found by its name anywhere below `pictures`, to `output/class`; the missing ones."""
    found = {path.name: path for path in pictures.rglob("*") if path.is_file()}
    missing = [file for files in classes.values() for file in files if file not in found]
    if missing:
        return missing
    for name, files in classes.items():
        (output / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(found[file], output / name / file)
    return []


def main(argv: list[str] | None = None) -> int:
    """Parse, copy, report; 1 when a picture is missing (nothing is copied then)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("trainset/textures"))
    parser.add_argument("--classes", type=Path, default=CLASS_LIST)
    parser.add_argument("--output", type=Path, default=Path("trainset/c2i"))
    args = parser.parse_args(argv)
    try:
        classes = read_classes(args.classes)
    except (OSError, ValueError) as error:
        print(f"class_set: {error}", file=sys.stderr)
        return 1
    missing = sort_into_classes(args.pictures, classes, args.output)
    if missing:
        print(f"class_set: {len(missing)} pictures are not below {args.pictures}: {', '.join(missing)}",
              file=sys.stderr)
        return 1
    print(f"{sum(map(len, classes.values()))} pictures in {len(classes)} classes below {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("class_set", main))
