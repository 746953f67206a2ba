"""Files on a machine that others use: links put in place beforehand, permissions, folders of somebody else."""
from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import test_tile as tile_script
from inference.large import Flags, WorkFolder
from pictures import result_file
from pictures.picture import Metadata, Picture
from pictures.result_file import PixelStore, ResultFile
from pictures.rgb import save_picture
from utils.errors import UserError
from utils.files import cell, private_folder, replacing, text_of_cell

PLAN = {"settings": 1}
SECRET = b"not to be overwritten"


@pytest.fixture()
def victim(tmp_path: Path) -> Path:
    """A file of the user's that links of somebody else lead to."""
    path = tmp_path / "victim"
    path.write_bytes(SECRET)
    return path


@pytest.fixture()
def usual_umask():
    """Files for oneself and the group."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def gray(side: int = 8) -> Picture:
    """A small picture."""
    return Picture(np.zeros((side, side, 1), np.uint8), None, True, Metadata(), "png")


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path, victim: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    (tmp_path / ".part-guessed.txt").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("ours")
    assert victim.read_bytes() == SECRET and not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("open_one", [
    lambda link: PixelStore((4, 4, 1), np.dtype(np.uint8), link), lambda link: Flags(link, 9),
    lambda link: ResultFile(link.with_name("a.png"), gray(), 8, 8, spool=link)], ids=["pixels", "flags", "spool"])
def test_raw_files_are_no_links(tmp_path: Path, victim: Path, open_one) -> None:
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises((OSError, UserError)):
        open_one(tmp_path / "link")
    assert victim.read_bytes() == SECRET


def test_the_spool_of_a_large_result_is_no_link(tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    monkeypatch.setattr(result_file, "MEMORY_BYTES", 0)
    (tmp_path / ".part-guessed.spool").symlink_to(victim)
    with pytest.raises(UserError, match="a.png"):
        ResultFile(tmp_path / "a.png", gray(), 8, 8)
    assert victim.read_bytes() == SECRET


def test_results_have_the_permissions_of_the_umask(tmp_path: Path, usual_umask: None) -> None:
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        result = ResultFile(tmp_path / f"a{suffix}", gray(), 8, 8)
        result.finish()
        save_picture(Image.new("RGB", (4, 4)), tmp_path / f"b{suffix}")
        assert mode(tmp_path / f"a{suffix}") == mode(tmp_path / f"b{suffix}") == 0o640, suffix


def test_a_work_folder_is_for_its_user_alone(tmp_path: Path, usual_umask: None) -> None:
    folder = WorkFolder(tmp_path / "a.png")
    assert not folder.prepare(PLAN)
    assert mode(folder.path) == 0o700
    folder.leave()
    again = WorkFolder(tmp_path / "a.png")
    assert again.prepare(PLAN)
    again.remove()


def test_a_work_folder_that_others_could_write_into_is_not_continued(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "a.png")
    folder.prepare(PLAN)
    folder.leave()
    folder.path.chmod(0o777)
    (folder.path / "side4").write_bytes(b"from somebody else")
    again = WorkFolder(tmp_path / "a.png")
    assert not again.prepare(PLAN) and mode(again.path) == 0o700 and not (again.path / "side4").exists()
    again.remove()


def test_a_link_in_place_of_a_work_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o700)
    (tmp_path / "theirs" / "side4").touch()
    (tmp_path / ".a.png.part").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="a.png.part.*remove it"):
        WorkFolder(tmp_path / "a.png").prepare(PLAN)
    assert (tmp_path / "theirs" / "side4").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give folders away")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o700)
    os.chown(tmp_path / "theirs", 12_345, 12_345)
    with pytest.raises(UserError, match="somebody else's"):
        private_folder(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["side4", "side4.done", "rows.done", "pixels.raw"])
def test_links_within_a_work_folder_are_not_followed(tmp_path: Path, victim: Path, name: str) -> None:
    folder = WorkFolder(tmp_path / "a.png")
    folder.prepare(PLAN)
    (folder.path / name).symlink_to(victim)
    with pytest.raises(OSError):
        folder.latents(4, 2, (1, 4, 4))
        folder.finished_rows(3)
        PixelStore((4, 4, 1), np.dtype(np.uint8), folder.pixels)
    folder.remove()
    assert victim.read_bytes() == SECRET


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_the_lock_does_not_hang(tmp_path: Path) -> None:
    folder = tmp_path / ".a.png.part"
    folder.mkdir(0o777)
    os.mkfifo(folder / "lock")
    with pytest.raises(UserError, match="another run is working"):  # for as long as a lock may be half written
        WorkFolder(tmp_path / "a.png").prepare(PLAN)
    os.utime(folder / "lock", (0, 0))
    assert not WorkFolder(tmp_path / "a.png").prepare(PLAN)


def test_a_planted_folder_costs_one_picture(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("inference.runner.LARGE_WINDOWS", 1)
    (tmp_path / "in").mkdir()
    for name, side in (("large.png", 24), ("small.png", 4)):
        Image.new("RGB", (side, side), "gray").save(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out" / ".large.png.part").symlink_to(tmp_path / "theirs")
    assert tile_script.main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(weights)]) == 1
    assert not list((tmp_path / "theirs").iterdir()) and (tmp_path / "out" / "small.png").exists()
    assert "1 restored" in (said := capsys.readouterr().out) and "1 failed" in said


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\tx", "'=1"])
def test_cells_are_no_formulas(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert cell("photo-1=2.png") == "photo-1=2.png"


@given(st.text(alphabet="'=+-@\t\rab", max_size=6))
def test_cells_come_back(text: str) -> None:
    assert text_of_cell(cell(text)) == text
