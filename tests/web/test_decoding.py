"""Pictures read in a child process: the same pictures, and whatever becomes of the child, one line with the name."""
from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import color_profile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pictures.formats import ImageError, vips
from pictures.picture import read_picture
from web import decoding
from web.decoding import Decoder
from web.sessions import Cancelled

PLENTY = 10 ** 6
HANG_SECONDS = 60.0  # more than any test waits
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="NOTICE: no limit of memory here")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    made = Decoder(PLENTY, tmp_path_factory.mktemp("work"))
    made.start()
    return made


@pytest.fixture()
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "small.png")
    return tmp_path / "small.png"


def refusal(decoder: Decoder, path: Path, **options: object) -> str:
    """The one line that says why a picture cannot be read; nothing is left of the attempt."""
    with pytest.raises(ImageError) as caught:
        decoder.read(path, **options)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1
    assert not list(decoder.folder.iterdir())
    return line


def with_everything(folder: Path) -> list[Path]:
    """Pictures of several kinds, depths and metadata."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Title", "a test")
    exif[0x013B] = "A. Painter"
    Image.fromarray(noise).save(folder / "rgba.png", pnginfo=text, dpi=(300, 200), exif=exif)
    Image.fromarray(noise[:, :, :3]).save(folder / "rgb.jpg", icc_profile=color_profile(), comment=b"a comment")
    Image.fromarray(noise[:, :, 0]).save(folder / "gray.png")
    vips().Image.new_from_array(noise.astype(np.uint16) * 257).copy(interpretation="rgb16").write_to_file(
        str(folder / "deep.tif"))
    return sorted(folder.iterdir())


def test_what_a_child_reads_is_what_is_read_here(decoder: Decoder, tmp_path: Path) -> None:
    for path in with_everything(tmp_path):
        found, expected = decoder.read(path), read_picture(path)
        np.testing.assert_array_equal(found.color, expected.color)
        assert found.color.dtype == expected.color.dtype
        assert (found.alpha is None) == (expected.alpha is None)
        assert found.alpha is None or np.array_equal(found.alpha, expected.alpha)
        assert (found.metadata, found.format, found.is_gray) == (expected.metadata, expected.format, expected.is_gray)
    assert not list(decoder.folder.iterdir())


def test_broken_and_large_pictures_are_refused_as_they_are_here(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    Image.new("L", (1001, 1000)).save(tmp_path / "large.png")
    for name in ("broken.png", "large.png", "missing.png"):
        with pytest.raises(ImageError) as expected:
            read_picture(tmp_path / name, PLENTY)
        assert refusal(decoder, tmp_path / name) == str(expected.value)


def test_too_long_a_temporary_folder_is_told(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    code = "from web.decoding import Decoder\nfrom utils.errors import guarded\nguarded('a.py', Decoder(9).start)"
    done = subprocess.run([sys.executable, "-c", code], cwd=decoding.ROOT, env={**os.environ, "TMPDIR": str(folder)},
                          capture_output=True, text=True, check=False)
    assert done.stderr == f"a.py: {folder}: too long a name for a socket in it: set TMPDIR to a shorter one\n"


def test_warnings_reach_the_log(decoder: Decoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.jpg", icc_profile=color_profile("GRAY"))
    with caplog.at_level(logging.WARNING, "web.decoding"):
        decoder.read(tmp_path / "odd.jpg")
    assert "the colour profile is left out" in caplog.text


@needs_proc
def test_memory_is_limited(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGBA", (3000, 3000)).save(tmp_path / "large.png")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(decoding, "BYTES_PER_PIXEL", 0)
    monkeypatch.setattr(decoding, "SPARE_BYTES", 2 ** 25)
    small = Decoder(PLENTY * 10, tmp_path / "work")
    refusal(small, tmp_path / "large.png")
    assert small.read(picture).width == 4


@needs_proc
def test_the_largest_picture_fits_into_the_limit(tmp_path: Path) -> None:
    """16-bit RGBA with a profile and hidden pixels: the kind that takes most."""
    side = 2000
    pixels = np.random.default_rng(0).integers(0, 2 ** 16, (side // 8, side // 8, 4), dtype=np.uint16)
    pixels[:, ::2, 3] = 0
    image = vips().Image.new_from_array(pixels.repeat(8, 0).repeat(8, 1)).copy(interpretation="rgb16")
    image.set_type(vips().GValue.blob_type, "icc-profile-data", color_profile())
    image.write_to_file(str(tmp_path / "deep.png"), compression=1)
    assert Decoder(side * side).read(tmp_path / "deep.png").alpha.dtype == np.uint16


# What a child may do instead of decoding; found by their names in the child.
def crash(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path: str, *_: object) -> None:
    Path(path).with_suffix(".pid").write_text(str(os.getpid()))
    time.sleep(HANG_SECONDS)


def give_up(*_: object) -> None:
    sys.exit(1)


@pytest.mark.parametrize("fate, said", [(crash, "crashed: signal 11"), (give_up, "ended early")])
def test_a_child_may_die(decoder: Decoder, picture: Path, monkeypatch: pytest.MonkeyPatch, fate: Callable,
                         said: str) -> None:
    monkeypatch.setattr(decoding, "_decode", fate)
    assert said in refusal(decoder, picture)
    monkeypatch.undo()
    assert decoder.read(picture).width == 4


def is_gone(pid: int) -> bool:
    """Whether a process ends within a while."""
    until = time.monotonic() + HANG_SECONDS / 2
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_picture_takes_so_long_and_no_longer(decoder: Decoder, picture: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_decode", hang)
    monkeypatch.setattr(decoder, "seconds", 0.7)
    assert "takes longer than 0.7 s" in refusal(decoder, picture)
    pid = picture.with_suffix(".pid")
    assert not pid.exists() or is_gone(int(pid.read_text()))


def test_cancel_ends_the_child(decoder: Decoder, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_decode", hang)
    pid = picture.with_suffix(".pid")

    def check() -> None:
        if pid.exists() and pid.read_text():
            raise Cancelled
    with pytest.raises(Cancelled):
        decoder.read(picture, check)
    assert is_gone(int(pid.read_text())) and not list(decoder.folder.iterdir())


GOOD = {"shape": [1, 2, 3], "depth": "uint8", "alpha": False, "format": "png",
        "metadata": {"exif": None, "xmp": None, "icc": None, "resolution": None, "chunks": [], "comments": [],
                     "iptc": None}}
TOO_LARGE = {"shape": [10 ** 4, 10 ** 4, 3]}
LIES = ["", "nonsense", "[]", "{}", '{"error"', "[" * 10 ** 5,
        {"shape": [2 ** 40, 1, 3]}, TOO_LARGE, {"shape": [1, 2]}, {"shape": [1, 2, 2]},
        {"shape": [-1, -2, 3]}, {"shape": [1.0, 2, 3]}, {"shape": None}, {"shape": [1, 3, 3]}, {"depth": "object"},
        {"depth": "O"}, {"depth": []}, {"alpha": True}, {"format": "../x"}, {"format": 5}, {"format": "a" * 99},
        {"metadata": None}, {"metadata": {}}, *({"metadata": {**GOOD["metadata"], name: value}} for name, value in (
            ("exif", 5), ("exif", "not base64!"), ("resolution", [1]), ("resolution", ["a", "b"]), ("chunks", [[1, 2]]),
            ("chunks", [["QQ==", "QQ==", "QQ=="]]), ("comments", "QQ=="), ("resolution", [float("nan"), 1])))]


def lie(_: str, folder: str, *__: object) -> None:
    Path(folder, "answer.json").write_text(json.dumps({**GOOD, "depth": "object"}))


def test_an_answer_is_not_believed(decoder: Decoder, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that a picture has taken over says what it likes."""
    monkeypatch.setattr(decoding, "_decode", lie)
    assert "ended early" in refusal(decoder, picture)


@pytest.mark.parametrize("answer", LIES, ids=lambda answer: str(answer)[:40])
def test_every_part_of_an_answer_is_checked(tmp_path: Path, answer: str | dict) -> None:
    (tmp_path / "color").write_bytes(bytes(6))
    (tmp_path / "answer.json").write_text(json.dumps(GOOD))
    assert decoding._result(tmp_path, PLENTY).color.shape == (1, 2, 3)
    if answer == TOO_LARGE:  # nothing but the bound refuses it; a hole takes no room
        os.truncate(tmp_path / "color", math.prod(answer["shape"]))
    (tmp_path / "answer.json").write_text(answer if isinstance(answer, str) else json.dumps({**GOOD, **answer}))
    with pytest.raises(decoding.NO_ANSWER):
        decoding._result(tmp_path, PLENTY)
