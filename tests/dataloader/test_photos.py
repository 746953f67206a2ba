"""The photo lists and the assembly of photographs out of packages."""
from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from dataloader.assemble import photos, sample_set, sources
from dataloader.assemble.archives import first_picture, qt_files
from dataloader.assemble.photos import HELD_OUT, PHOTO_LIST, assemble
from dataloader.assemble.sources import (
    PackagedPhoto,
    SourceError,
    download_deb,
    extract,
    read_names,
    read_photo_list,
)
from dataloader.entries import find_entries

SAMPLE_SET = Path(__file__).parents[2] / "testset" / "sample"
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with one package `some-wallpapers` of two pictures and a copyright file."""
    tree = tmp_path / "tree"
    pictures = tree / "usr/share/backgrounds"
    pictures.mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("b.png", (20, 20))):
        Image.new("RGB", size, "teal").save(pictures / name)
    licence = tree / "usr/share/doc/some-wallpapers"
    licence.mkdir(parents=True)
    (licence / "copyright").write_text("License: CC0-1.0\n")
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text("Package: some-wallpapers\nVersion: 1\nArchitecture: all\n"
                                     "Maintainer: Nobody <nobody@example.org>\nDescription: pictures\n")
    folder = tmp_path / "debs"
    folder.mkdir()
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(folder / "some-wallpapers_1_all.deb")],
                   check=True, capture_output=True)
    return folder


def listed(name: str, width: int, height: int, package: str = "some-wallpapers") -> PackagedPhoto:
    return PackagedPhoto(package, f"usr/share/backgrounds/{name}", width, height)


def test_shipped_list_is_complete_and_unambiguous():
    entries = read_photo_list(PHOTO_LIST)
    assert len(entries) == 38
    assert len({entry.local_path for entry in entries}) == 38
    assert read_names(HELD_OUT) <= {entry.name for entry in entries}
    assert sum(entry.width * entry.height for entry in entries) == pytest.approx(225e6, rel=0.01)


def test_all_shipped_lists_fit_together():
    folder = Path(photos.__file__).parent
    lists = (folder / f"{name}.txt" for name in ("photos", "photos_more", "textures"))
    entries = [entry for path in lists for entry in read_photo_list(path)]
    assert len({entry.local_path for entry in entries}) == len(entries)
    assert {entry.weight for entry in entries if entry.package == "krank"} == {0.35}
    assert not {entry.name for entry in entries if entry.weight <= 0}


def test_sample_set_comes_from_held_out_photos_only():
    listed_names = {entry.name for entry in read_photo_list(PHOTO_LIST)}
    used = {sample.source for sample in sample_set.SAMPLES} & listed_names
    assert used == read_names(HELD_OUT)


@pytest.mark.parametrize("line", ["no-colon 10x10", "pkg:usr/a.jpg", "pkg:../a.jpg 10x10", "pkg:/a.jpg 10x10",
                                  "pkg:usr/a.jpg 10x10 often"])
def test_malformed_lines_are_named(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"# comment\n\n{line}\n")
    with pytest.raises(ValueError, match="line 3"):
        read_photo_list(path)


@needs_dpkg
def test_assembles_skips_held_out_and_keeps_what_is_there(tmp_path, packages):
    output = tmp_path / "out"
    entries = [listed("a.png", 40, 30), listed("b.png", 20, 20)]
    result = assemble(entries, output, held_out=frozenset({"b.png"}), debs=packages)
    assert (result.written, result.present, result.held_out, result.problems) == (1, 0, 1, [])
    assert Image.open(output / "some-wallpapers/backgrounds/a.png").size == (40, 30)
    assert (output / "some-wallpapers/copyright").read_text() == "License: CC0-1.0\n"
    assert not (output / "some-wallpapers/backgrounds/b.png").exists()
    shutil.rmtree(packages)  # a second run needs nothing
    assert assemble(entries[:1], output, debs=packages).present == 1


@needs_dpkg
def test_wrong_size_missing_file_and_missing_package_are_reported(tmp_path, packages):
    output = tmp_path / "out"
    entries = [listed("a.png", 41, 30), listed("b.png", 20, 20), listed("c.png", 9, 9), listed("d.png", 9, 9, "absent")]
    result = assemble(entries, output, debs=packages)
    assert result.written == 1
    assert len(result.problems) == 3
    assert any("41x30" in problem for problem in result.problems)
    assert any("c.png" in problem for problem in result.problems)
    assert any("absent" in problem for problem in result.problems)
    assert not (output / "some-wallpapers/backgrounds/a.png").exists()


@needs_dpkg
def test_damaged_package_is_an_error(tmp_path, packages):
    deb = next(packages.glob("*.deb"))
    deb.write_bytes(deb.read_bytes()[:-40])
    with pytest.raises(SourceError, match="damaged"):
        extract(deb, {"usr/share/backgrounds/a.png": tmp_path / "a.png"})


def eet_archive(**entries: bytes) -> bytes:
    """An archive as the desktop's tools write it, with the names behind the directory."""
    names = [f"edje/images/{name[1:]}".encode() + b"\0" for name in entries]
    place = 12 + 24 * len(entries)
    data = place + sum(map(len, names))
    directory = b""
    for name, content in zip(names, entries.values()):
        directory += struct.pack(">6I", data, len(content), len(content), place, len(name), 0)
        place, data = place + len(name), data + len(content)
    return struct.pack(">3I", 0x1EE70F42, len(entries), 0) + directory + b"".join(names) + b"".join(entries.values())


def test_the_first_picture_of_an_eet_archive():
    jpeg = b"\xff\xd8\xff\xe0 picture"
    assert first_picture(eet_archive(_1=b"\xff\xd8\xff other", _0=b"header" + jpeg)) == jpeg
    whole = eet_archive(_1=b"\xff\xd8\xff other", _0=jpeg)
    for broken, reason in ((whole[:-1], "without a JPEG"), (b"no archive at all", "no EET"), (whole[:30], "cut off"),
                           (eet_archive(_1=jpeg), "without a JPEG")):
        with pytest.raises(ValueError, match=reason):
            first_picture(broken)


def qt_archive(files: dict[str, bytes]) -> bytes:
    """A resource archive, version 3, with one folder `a` that holds the files."""
    names, data, tree, offsets = b"", b"", b"", []
    for name in ("a", *files):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    tree += struct.pack(">IH2IQ", 0, 2, 1, 1, 0) + struct.pack(">IH2IQ", offsets[0], 2, len(files), 2, 0)
    for offset, content in zip(offsets[1:], files.values()):
        tree += struct.pack(">IH4xIQ", offset, 0, len(data), 0)
        data += struct.pack(">I", len(content)) + content
    header = struct.pack(">4s4I4x", b"qres", 3, 24, 24 + len(tree), 24 + len(tree) + len(data))
    return header + tree + data + names


def test_files_of_a_qt_archive():
    files = {"one.webp": b"first", "zwei.webp": b"second"}
    whole = qt_archive(files)
    assert dict(qt_files(whole)) == {f"a/{name}": content for name, content in files.items()}
    for broken, reason in ((b"no archive at all, but long enough", "no Qt"), (whole[:40], "cut off")):
        with pytest.raises(ValueError, match=reason):
            list(qt_files(broken))


@needs_dpkg
def test_archives_become_pictures_and_weights_a_list(tmp_path):
    tree, folder, output = tmp_path / "tree", tmp_path / "debs", tmp_path / "out"
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(buffer, "JPEG")
    (tree / "usr/share/themes").mkdir(parents=True)
    (tree / "usr/share/themes/a.edj").write_bytes(eet_archive(_0=buffer.getvalue()))
    (tree / "usr/share/themes/b.rcc").write_bytes(qt_archive({"one.jpg": buffer.getvalue(), "two.jpg": b"not asked"}))
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text("Package: themes\nVersion: 1\nArchitecture: all\n"
                                         "Maintainer: Nobody <nobody@example.org>\nDescription: pictures\n")
    folder.mkdir()
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(folder / "themes_1_all.deb")],
                   check=True, capture_output=True)
    listing = tmp_path / "list.txt"
    listing.write_text("themes:usr/share/themes/a.edj 40x30 0.25\nthemes:usr/share/themes/b.rcc/a/one.jpg 40x30\n"
                       "themes:usr/share/themes/missing.edj 40x30\n")
    assert photos.main(["--list", str(listing), "--debs", str(folder), "--output", str(output)]) == 1
    found, other = find_entries(output / "list.txt")
    assert found.path == output / "themes/themes/a.jpg" and found.weight == 0.25
    assert other.path == output / "themes/themes/b.rcc/a/one.jpg"
    assert all(Image.open(each.path).size == (40, 30) for each in (found, other))


def test_missing_tools_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(SourceError, match="apt-get not found.*--debs"):
        download_deb("some-wallpapers", tmp_path)
    with pytest.raises(SourceError, match="dpkg-deb not found"):
        extract(tmp_path / "some.deb", {})


def test_command_reports_problems(tmp_path, capsys):
    path = tmp_path / "list.txt"
    path.write_text("absent:usr/share/a.png 9x9\n")
    assert photos.main(["--list", str(path), "--debs", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "absent" in capsys.readouterr().err
    assert photos.main(["--list", str(tmp_path / "no.txt")]) == 1


def test_sample_set_is_whole():
    """Every HR picture has an LR one of a quarter of its side, and together they are small."""
    hr = {path.name: Image.open(path).size for path in (SAMPLE_SET / "HR").iterdir()}
    lr = {path.name: Image.open(path).size for path in (SAMPLE_SET / "LR").iterdir()}
    assert set(hr) == set(lr) == {f"{sample.name}.png" for sample in sample_set.SAMPLES}
    assert all(lr[name] == (width // 4, height // 4) for name, (width, height) in hr.items())
    assert sum(path.stat().st_size for path in SAMPLE_SET.rglob("*.png")) < 6e6


def test_sample_set_is_what_the_script_makes(tmp_path):
    """For the pictures whose sources scikit-image ships."""
    pytest.importorskip("skimage")
    folder = sample_set.scikit_image_folder()
    for index, sample in enumerate(sample_set.SAMPLES):
        if sample.name != "cat":
            continue
        hr, lr = sample_set.make_pair(sample, folder / sample.source, sample_set.SEED + index)
        assert hr.tobytes() == Image.open(SAMPLE_SET / "HR/cat.png").tobytes()
        stored = Image.open(SAMPLE_SET / "LR/cat.png")
        differing = sum(abs(a - b) > 1 for a, b in zip(lr.tobytes(), stored.tobytes()))
        assert differing < len(stored.tobytes()) / 100  # other processors may round differently


def test_cut_must_fit(tmp_path):
    Image.new("RGB", (50, 50)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="does not fit"):
        sample_set.cut(sample_set.Sample("small", "small.png", (64, 64)), tmp_path / "small.png")


@needs_dpkg
@pytest.mark.parametrize(("flags", "expected"), [((), {"a.png"}), (("--held_out",), {"b.png"})])
def test_held_out_photographs_come_alone_or_not_at_all(packages, tmp_path, monkeypatch, flags, expected):
    names, listing, output = tmp_path / "held_out.txt", tmp_path / "list.txt", tmp_path / "out"
    names.write_text("b.png\n")
    listing.write_text("some-wallpapers:usr/share/backgrounds/a.png 40x30\n"
                       "some-wallpapers:usr/share/backgrounds/b.png 20x20\n")
    monkeypatch.setattr(photos, "HELD_OUT", names)
    assert photos.main(["--list", str(listing), "--debs", str(packages), "--output", str(output), *flags]) == 0
    assert {path.name for path in output.rglob("*.png")} == expected


@needs_dpkg
def test_a_list_keeps_what_earlier_runs_listed(packages, tmp_path, monkeypatch, capsys):
    (tmp_path / "held_out.txt").write_text("b.png\n")
    monkeypatch.setattr(photos, "HELD_OUT", tmp_path / "held_out.txt")
    output = tmp_path / "out"
    (output / "mine").mkdir(parents=True)
    for name in ("mine/c.png", "mine/b.png"):
        Image.new("RGB", (8, 8)).save(output / name)
    (output / "list.txt").write_text("mine/c.png, 0.5\nmine/gone.png, 1\nmine/b.png, 1\n")
    listing = tmp_path / "list.txt"
    listing.write_text("some-wallpapers:usr/share/backgrounds/a.png 40x30\n"
                       "some-wallpapers:usr/share/backgrounds/b.png 20x20\n")
    flags = ["--list", str(listing), "--debs", str(packages)]
    assert photos.main([*flags, "--output", str(output)]) == 0
    assert (output / "list.txt").read_text() == "mine/c.png, 0.5\nsome-wallpapers/backgrounds/a.png, 1\n"
    capsys.readouterr()
    assert photos.main([*flags, "--held_out", "--output", str(output)]) == 1
    assert "trained on" in capsys.readouterr().err and not list(output.glob("some*/**/b.png"))
    monkeypatch.chdir(tmp_path)
    assert photos.main([*flags, "--held_out"]) == 0
    assert list((tmp_path / "trainset_held_out").rglob("*.png")) == [
        tmp_path / "trainset_held_out/some-wallpapers/backgrounds/b.png"]


@pytest.mark.parametrize("code", [0, 100])
def test_a_download_has_its_name_once_it_is_whole(tmp_path, monkeypatch, code):
    def download(command: list[str], cwd: str, **_: object) -> subprocess.CompletedProcess:
        (Path(cwd) / "some-wallpapers_1_all.deb").write_bytes(b"whole" if code == 0 else b"half")
        assert sources.find_deb("some-wallpapers", tmp_path) is None
        return subprocess.CompletedProcess(command, code, "", "E: broken off")
    monkeypatch.setattr(sources.shutil, "which", lambda name: name)
    monkeypatch.setattr(sources.subprocess, "run", download)
    if code:
        with pytest.raises(SourceError, match="broken off"):
            download_deb("some-wallpapers", tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        assert download_deb("some-wallpapers", tmp_path) == tmp_path / "some-wallpapers_1_all.deb"
        assert [path.name for path in tmp_path.iterdir()] == ["some-wallpapers_1_all.deb"]
