"""Classes cut out of photographs: the list that ships, the cutting, what is held out, refusals."""
from __future__ import annotations

from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from dataloader.assemble.class_set import BOX_LIST, CROP, STRIDE, distinct_crops, divided, leaks, main, read_boxes
from dataloader.assemble.photos import HELD_OUT
from dataloader.assemble.sources import PackagedPhoto, read_names, read_photo_list

LISTS = ("photos.txt", "photos_more.txt", "photos_animals.txt", "textures.txt")


@pytest.fixture(scope="module")
def listed() -> dict[PurePosixPath, PackagedPhoto]:
    """All photographs that boxes may be of, by their paths."""
    return {photo.local_path: photo for name in LISTS for photo in read_photo_list(BOX_LIST.with_name(name))}


def test_the_list_names_photographs_that_may_be_trained_on(listed: dict[PurePosixPath, PackagedPhoto]) -> None:
    held_out = read_names(HELD_OUT)
    boxes = read_boxes(BOX_LIST)
    assert len({box.label for box in boxes}) >= 8
    for box in boxes:
        photo = listed[box.photo]
        left, top, right, bottom = box.edges
        sides = photo.width * (right - left) // 100, photo.height * (bottom - top) // 100
        assert min(sides) // box.reduction >= CROP and photo.name not in held_out, box


def test_every_class_of_the_list_has_two_thousand_crops(listed: dict[PurePosixPath, PackagedPhoto]) -> None:
    counts: dict[str, int] = {}
    for box in read_boxes(BOX_LIST):
        photo = listed[box.photo]
        left, top, right, bottom = box.edges
        width, height = (side * (end - start) // 100 // box.reduction for side, start, end in (
            (photo.width, left, right), (photo.height, top, bottom)))
        training = divided(Image.new("L", (width, height)))[0]
        counts[box.label] = counts.get(box.label, 0) + distinct_crops(*training.size)
    assert min(counts.values()) >= 2000, counts


def test_parts_of_different_classes_do_not_overlap() -> None:
    boxes = read_boxes(BOX_LIST)
    for first, second in product(boxes, boxes):
        if first.photo == second.photo and first.label != second.label:
            apart = any(a[i + 2] <= b[i] for a, b in ((first.edges, second.edges), (second.edges, first.edges))
                        for i in (0, 1))
            assert apart, (first, second)


def test_nothing_is_held_out_that_another_part_is_trained_on(listed: dict[PurePosixPath, PackagedPhoto]) -> None:
    sizes = {path: (photo.width, photo.height) for path, photo in listed.items()}
    assert not list(leaks(read_boxes(BOX_LIST), sizes))


@pytest.mark.parametrize("line", [
    "sand a/wide.png 0 0 80 45 1", "wood tall.png 0 20 80 100 2", "wood tall.png 0 0 100 71 3"])
def test_what_is_held_out_lies_where_it_is_cut(photos: Path, line: str) -> None:
    """Every pixel of the photograph tells its place, and the box's own division says the same."""
    (photos.parent / "boxes.txt").write_text(line + "\n")
    (box,) = read_boxes(photos.parent / "boxes.txt")
    width, height = Image.open(photos / box.photo).size
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)))
    coordinates = [Image.fromarray(each.astype(np.float32)) for each in places]
    rectangles = box.divided(width, height)
    for part, edges in enumerate(rectangles):
        found = [np.asarray(divided(box.cut(each))[part]) for each in coordinates]
        middle = (box.reduction - 1) / 2
        assert [each.min() - middle for each in found] == pytest.approx(edges[:2], abs=0.01)
        assert all(0 <= end - last.max() - middle <= box.reduction for end, last in zip(edges[2:], found, strict=True))


@pytest.mark.parametrize("width, height", [(128, 128), (128, 143), (144, 300), (256, 256), (400, 271)])
def test_crops_are_counted_as_they_lie(width: int, height: int) -> None:
    """Against all places in a row, at full and half size, twice for mirrored ones."""
    found = 0
    for w, h in ((width, height), (width // 2, height // 2)):
        places = [(x, y) for x in range(w - CROP + 1) for y in range(h - CROP + 1)]
        found += 2 * sum(x % STRIDE == 0 and y % STRIDE == 0 for x, y in places)
    assert distinct_crops(width, height) == found


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    """Two photographs of noise."""
    for name, sides in (("a/wide.png", (900, 600)), ("tall.png", (400, 1600))):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (sides[1], sides[0], 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)
    return tmp_path / "photos"


def run(photos: Path, output: Path, text: str) -> int:
    boxes = photos.parent / "boxes.txt"
    boxes.write_text(text)
    return main(["--photos", str(photos), "--boxes", str(boxes), "--output", str(output)])


def test_parts_are_cut_reduced_and_divided(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = "# classes\nsand a/wide.png 10 0 90 50 2\nwood tall.png 0 25 100 100 1\nwood a/wide.png 0 60 20 100 1\n"
    assert run(photos, tmp_path / "out", lines) == 0
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")) == [
        "held_out/sand/002.png", "held_out/wood/003.png", "train/sand/002.png", "train/wood/003.png",
        "train/wood/004.png"]

    def pixels(part: str, name: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path / "out" / part / name))
    photo = np.asarray(Image.open(photos / "a/wide.png")).astype(float)[:300, 90:810]
    reduced = photo.reshape(150, 2, 360, 2, 3).mean((1, 3))
    together = np.concatenate([pixels("train", "sand/002.png"), pixels("held_out", "sand/002.png")], axis=1)
    assert np.abs(together - reduced).max() <= 0.51
    assert pixels("held_out", "sand/002.png").shape[1] == CROP  # of 360, a quarter would be 90
    tall = np.concatenate([pixels("train", "wood/003.png"), pixels("held_out", "wood/003.png")])
    assert np.array_equal(tall, np.asarray(Image.open(photos / "tall.png"))[400:])
    assert pixels("held_out", "wood/003.png").shape[0] == 300
    said = capsys.readouterr().out
    assert "3 pictures in 2 classes" in said and "wood: 2 pictures" in said


@pytest.mark.parametrize("line, said", [
    ("sand a/wide.png 10 0 90 50", "line 1: expected `class path left top right bottom reduction`"),
    ("sand a/wide.png 90 0 10 50 1", "line 1: expected"), ("sand a/wide.png 0 0 101 50 1", "line 1: expected"),
    ("sand ../wide.png 0 0 100 50 1", "line 1: expected"), ("sand a/wide.png 0 0 100 50 0", "line 1: expected"),
    ("sand a/wide.png 0 0 100 20 1", "line 1: 900x120 pixels"), ("sand b.png 0 0 100 20 1", "the first is b.png"),
    ("sand a/wide.png 0 0 60 60 1\nsand a/wide.png 40 0 100 60 1", "its held-out end lies in what line 2 trains on"),
    ("", "lists no boxes"),
])
def test_bad_lists_are_refused(photos: Path, tmp_path: Path, line: str, said: str,
                               capsys: pytest.CaptureFixture) -> None:
    assert run(photos, tmp_path / "out", line + "\n") == 1
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1 and not (tmp_path / "out").exists()


def test_pictures_of_boxes_that_are_no_more_go(photos: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path / "out", "sand a/wide.png 10 0 90 50 2\nwood tall.png 0 25 100 100 1\n") == 0
    (tmp_path / "out/train/wood/mine.png").write_bytes(b"")
    assert run(photos, tmp_path / "out", "\n\nsand tall.png 0 25 100 100 1\n") == 0
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
                  ) == ["held_out/sand/003.png", "train/sand/003.png", "train/wood/mine.png"]
    assert not (tmp_path / "out/held_out/wood").exists()
