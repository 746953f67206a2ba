"""The folder of uploads: private, bounded, emptied; and which paths lie in it."""
from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from utils.errors import UserError
from web import uploads as module
from web.uploads import Uploads, is_upload, page_folder

MINUTE = 60.0


def put(folder: Path, digit: str, size: int = 10, age: float = 0.0) -> Path:
    """A file as gradio has it, in a folder named by its hash."""
    path = folder / (digit * 64) / "a picture.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture()
def by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as old as `put` says: a test cannot set when a file was changed last in the file system's own view."""
    files = Uploads._files

    def aged(self: Uploads) -> dict:
        return {path: os.stat_result((*state[:9], state.st_mtime)) for path, state in files(self).items()}
    monkeypatch.setattr(Uploads, "_files", aged)


def test_a_fresh_folder_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    for parent in (None, "", str(tmp_path / "new" / "place")):
        with page_folder(parent) as (served, work):
            for folder in (served, work):
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700
                (folder / "x").mkdir()
                (folder / "x" / "y").write_text("")
            assert not parent or served.parent == Path(parent)
        assert not served.exists() and not work.exists()
    assert stat.S_IMODE((tmp_path / "new" / "place").stat().st_mode) == 0o700


def test_only_files_in_their_place_are_uploads(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    path = put(folder, "a")
    secret = tmp_path / "secret"
    secret.write_text("")
    (path.parent / "link").symlink_to(secret)
    (folder / "tmp1234").write_text("")
    (folder / "deep_links").mkdir()
    (folder / "deep_links" / "state.json").write_text("")
    assert is_upload(folder, str(path)) and is_upload(folder, f"{folder}/x/../{path.parent.name}/{path.name}")
    for wrong in (None, 5, [], {}, "", ".", "/", "/etc/passwd", str(secret), str(path.parent), str(folder),
                  str(path.parent / "link"), str(folder / "tmp1234"), str(folder / "deep_links" / "state.json"),
                  f"{path}/../../../secret", f"{path}\0", "\ud800", "x" * 10 ** 5, f"file://{path}", path.name,
                  "http://127.0.0.1/x.png", f"{path}\n"):
        assert not is_upload(folder, wrong), wrong


@pytest.mark.usefixtures("by_age")
def test_the_oldest_go_where_there_is_no_room(tmp_path: Path) -> None:
    example = put(tmp_path, "e", 100, age=MINUTE)
    known = {str(put(tmp_path, digit, 10, age)) for digit, age in (("a", 30), ("b", 20), ("c", 10))}
    uploads = Uploads(tmp_path, 40, [known])
    uploads._kept = {example}
    uploads.expect(10)
    assert len(known) == 3
    uploads.expect(15)  # while the first is on its way
    assert known == {str(tmp_path / ("c" * 64) / "a picture.png")} and Path(*known).exists()
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["c", "e"] and example.exists()
    with pytest.raises(UserError, match="no room"):
        uploads.expect(20)
    uploads.done(15)
    uploads.done(10)
    uploads.expect(20)
    with pytest.raises(UserError, match="no room"):
        Uploads(tmp_path, 40).expect(41)


@pytest.mark.usefixtures("by_age")
def test_what_is_an_hour_old_goes(tmp_path: Path) -> None:
    old, young = put(tmp_path, "a", age=module.MAX_AGE + MINUTE), put(tmp_path, "b", age=module.MAX_AGE - MINUTE)
    (tmp_path / "tmp1").write_bytes(bytes(10))
    broken_off = tmp_path / "tmp2"
    broken_off.write_bytes(bytes(10))
    os.utime(broken_off, (time.time() - module.UPLOAD_SECONDS - MINUTE,) * 2)
    assert Uploads(tmp_path, 1000).sweep() == 20
    assert not old.parent.exists() and young.exists() and not broken_off.exists() and (tmp_path / "tmp1").exists()


def test_broken_off_uploads_make_room_once_none_is_under_way(tmp_path: Path) -> None:
    """What a client has sent before it vanished belongs to nobody."""
    uploads = Uploads(tmp_path, 100)
    uploads.expect(60)
    (tmp_path / "tmp1").write_bytes(bytes(50))
    with pytest.raises(UserError):
        uploads.expect(30)
    uploads.done(60)
    uploads.expect(60)
    assert not (tmp_path / "tmp1").exists()


def test_what_is_there_before_the_first_visitor_stays(tmp_path: Path) -> None:
    example = put(tmp_path, "e", 100)
    uploads = Uploads(tmp_path, 50)
    uploads.keep()
    uploads.expect(50)
    assert example.exists()
