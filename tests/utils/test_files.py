"""Files that appear whole or not at all."""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.files import create, read_at, replacing, write_at


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".png" and temporary.parent == path.parent
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has_pread", [True, False])
def test_threads_read_and_write_at_places_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      has_pread: bool) -> None:
    if not has_pread:  # as on Windows
        monkeypatch.delattr(os, "pread", raising=False)
        monkeypatch.delattr(os, "pwrite", raising=False)
    file, records = create(tmp_path / "a"), [bytes([index]) * 100 for index in range(200)]

    def written_and_read(index: int) -> bytes:
        assert write_at(file, records[index], 100 * index) == 100
        return read_at(file, 100, 100 * index)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(written_and_read, range(len(records)))) == records
    assert read_at(file, 100, 100 * len(records)) == b""
    os.close(file)
    assert (tmp_path / "a").read_bytes() == b"".join(records)
