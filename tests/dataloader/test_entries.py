"""What is found in folders, text files and shards, and how its pictures are read."""
from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_picture as picture
from PIL import Image

from dataloader.entries import Failures, find_entries, read_entry, read_rgb


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def names(root: Path) -> list[str]:
    return [str(entry).removeprefix(f"{root}/") for entry in find_entries(root)]


# ---- what is found

def test_folders_are_searched_to_the_bottom_in_order_and_without_hidden_files(tmp_path):
    for name in (".debs/a.png", "b.PNG", "deep/er/c.webp", "deep/.d.png", "deep/notes.txt", "deep/e.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert names(tmp_path) == ["b.PNG", "deep/e.gif", "deep/er/c.webp"]


def test_folders_behind_links_are_found_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"")
    root = tmp_path / "trainset"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    assert names(root) == ["link/a.png"]


def test_lists_have_weights_comments_and_paths_beside_them(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "c.png").write_bytes(b"")
    write_shard(tmp_path / "s.tar", {"d.png": b"1234"})
    text = tmp_path / "list.txt"
    text.write_text("\ufeff# a comment\n\na.png\nwith, comma.png\n b.jpg , 2.5\nfolder, 3\ns.tar, .5\ngone.png, 0\n")
    assert [(str(entry).removeprefix(f"{tmp_path}/"), entry.weight) for entry in find_entries(text)] == [
        ("a.png", 1), ("with, comma.png", 1), ("b.jpg", 2.5), ("folder/c.png", 3), ("s.tar/d.png", 0.5)]


@pytest.mark.parametrize("line, problem", [("a.png, -1", "weight"), ("a.png, nan", "weight"), ("nowhere", "no picture"),
                                           ("gone.tar", "no picture")])
def test_bad_lines_are_named(tmp_path, line, problem):
    (tmp_path / "list.txt").write_text(f"ok.png\n{line}\n")
    with pytest.raises(ValueError, match=f"list.txt, line 2.*{problem}"):
        find_entries(tmp_path / "list.txt")


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataloader.assemble.photos"):
        find_entries(tmp_path / "absent")
    (tmp_path / "data.bin").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="no text file"):
        find_entries(tmp_path / "data.bin")


# ---- shards

def test_pictures_of_a_shard_are_what_went_into_it(tmp_path):
    images = [picture(6, 9, seed) for seed in range(3)]
    members = {f"{i:06d}.png": encoded(image) for i, image in enumerate(images)}
    members |= {"000001.json": b"{}", "000001.cls": b"7", ".hidden.png": b"", "sub/a.png": encoded(images[0])}
    write_shard(tmp_path / "deep.tar", members)
    entries = find_entries(tmp_path)
    assert [entry.member for entry in entries] == ["000000.png", "000001.png", "000002.png", "sub/a.png"]
    for entry, image in zip(reversed(entries), (images[0], *reversed(images))):  # in any order
        assert read_entry(entry).tobytes() == image.tobytes()


def test_a_damaged_shard_gives_what_is_whole(tmp_path, caplog):
    shard = write_shard(tmp_path / "s.tar", {f"{i}.png": encoded(picture(30, 30, i)) for i in range(3)})
    shard.write_bytes(shard.read_bytes()[:9000])  # three members of about 3.5 kB
    entries = find_entries(tmp_path)
    assert "s.tar" in caplog.text and "2 pictures of it are used" in caplog.text
    assert [read_entry(entry).tobytes() for entry in entries] == [picture(30, 30, i).tobytes() for i in range(2)]
    shard.write_bytes(b"nothing of the kind")
    assert find_entries(tmp_path) == []


# ---- reading

def test_reading_turns_pictures_upright_and_lays_them_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(10, 20).save(tmp_path / "turned.png", exif=exif)
    assert read_rgb(tmp_path / "turned.png").size == (10, 20)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_rgb(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_gray_and_deep_pictures_become_8_bit_rgb(tmp_path):
    values = np.linspace(0, 65535, 70).round().astype(np.uint16)
    Image.fromarray(np.tile(values, (3, 1))).save(tmp_path / "deep.png")
    pixels = np.asarray(read_rgb(tmp_path / "deep.png"))
    assert pixels.shape == (3, 70, 3) and (pixels == np.rint(values / 257)[None, :, None]).all()


def test_failures_are_named_once_and_counted(caplog):
    failures = Failures()
    with caplog.at_level(logging.WARNING):
        for name in ("a.png", "b.png", "a.png"):
            failures.add(name, f"{name}: cannot be read")
    assert len(failures) == 2 and caplog.text.count("a.png") == 1
    assert [name for name, _ in failures.take_news()] == ["a.png", "b.png"] and not failures.take_news()


def test_files_that_need_a_package_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in "bc":
        (tmp_path / f"{name}.xyz").touch()
    monkeypatch.setattr("dataloader.entries.NEEDED", {".xyz": "a-package"})
    assert len(find_entries(tmp_path)) == 1
    assert [line for line in caplog.messages if "2 .xyz" in line and "a-package" in line]
