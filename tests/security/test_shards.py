"""Tar shards that mean harm: their whole pictures are found, in order, and nothing loops, grows or ends a training."""
from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest
from conftest import noise_picture
from gadgets import no_hang

from dataloader.entries import MAX_PICTURE, find_entries, read_entry
from dataloader.shards import members
from tests.memory import peak, reset_peak

BLOCK = 512
SIZE, KIND = slice(124, 136), slice(156, 157)
MEMORY = 100 * 2 ** 20


def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    noise_picture(8, 8).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = picture_bytes()


def header(name: str = "a.png", size: bytes | int = len(PICTURE), kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a right checksum, whatever it says."""
    raw = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    raw[SIZE] = size if isinstance(size, bytes) else b"%011o\0" % size
    raw[KIND] = kind
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def block(name: str, data: bytes = PICTURE, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + padded(data)


def record(text: str) -> bytes:
    """An attribute, behind its length."""
    size = len(text) + 3
    while len(f"{size} {text}\n") != size:
        size = len(f"{size} {text}\n")
    return f"{size} {text}\n".encode()


def negative(number: int) -> bytes:
    return b"\xff" + (2 ** 88 + number).to_bytes(11, "big")


def large(number: int) -> bytes:
    return b"\x80" + number.to_bytes(11, "big")


END = bytes(2 * BLOCK)
LONG = "d/" * 200 + "long.png"
DAMAGE = {  # what follows a whole picture, and a word of the warning
    "a negative size": (header("b.png", negative(-512)), "number"),
    "a size that leads back to itself": (header("b.png", negative(-2 ** 40)), "number"),
    "minus in octal": (header("b.png", b"-0000000777\0"), "number"),
    "no octal": (header("b.png", b"00000000089\0"), "number"),
    "10^12 bytes": (header("b.png", large(10 ** 12)), "behind the end"),
    "10^12 bytes of no picture": (header("b.txt", large(10 ** 12)), "behind the end"),
    "10^26 bytes": (header("b.png", large(10 ** 26)), "behind the end"),
    "a pax size of 10^12": (block("x", record(f"size={10 ** 12}"), tarfile.XHDTYPE) + header("b.png"), "behind"),
    "a negative pax size": (block("x", record("size=-512"), tarfile.XHDTYPE) + block("b.png"), "size"),
    "an endless pax size": (block("x", record("size=" + "9" * 5000), tarfile.XHDTYPE) + block("b.png"), "size"),
    "a long name of a gigabyte": (header("x", 2 ** 30, tarfile.GNUTYPE_LONGNAME), "behind the end"),
    "a long name of a megabyte": (block("x", b"y" * 10 ** 6, tarfile.GNUTYPE_LONGNAME) + block("b.png"), "about a"),
    "attributes of a megabyte of digits": (block("x", b"1" * 10 ** 6, tarfile.XHDTYPE) + block("b.png"), "about a"),
    "digits alone": (block("x", b"1" * 60_000, tarfile.XHDTYPE) + block("b.png"), "attributes"),
    "a record of no length": (block("x", b"0 path=b.png\n", tarfile.XHDTYPE) + block("b.png"), "attributes"),
    "a record beyond its block": (block("x", b"9999 path=b.png\n", tarfile.XHDTYPE) + block("b.png"), "attributes"),
    "a wrong checksum": (header("b.png")[:-1] + b"x", "no header"),
    "an end in a header": (header("b.png")[:100], "too early"),
    "an end in a picture": (block("b.png", PICTURE * 20)[:2 * BLOCK], "behind the end"),
    "a map without an end": (header("b.png", 0, tarfile.GNUTYPE_SPARSE), "no header"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_ends_a_shard_with_a_warning(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    damage, said = DAMAGE[name]
    if name == "a map without an end":
        damage = damage[:482] + b"\1" + damage[483:]
    path = tmp_path / "s.tar"
    path.write_bytes(block("a.png") + damage)
    with no_hang():
        entries = find_entries(tmp_path)
    assert [entry.member for entry in entries] == ["a.png"] and read_entry(entries[0]).size == (8, 8)
    line, = (line for line in caplog.messages if "s.tar" in line)
    assert said in line and "1 pictures of it are used" in line and "\n" not in line and len(line) < 500


def test_a_size_below_zero_made_older_readers_loop(tmp_path: Path) -> None:
    """CVE-2025-8194: the next header is looked for at a place that has been read. Here each is behind the last."""
    path = tmp_path / "s.tar"
    path.write_bytes(block("a.png") + header("b.png", negative(-BLOCK)) + block("c.png"))
    position, seen = 0, []
    while position not in seen and position < path.stat().st_size:  # as the library walked
        seen.append(position)
        size = tarfile.nti(path.read_bytes()[position:position + BLOCK][SIZE])
        position += BLOCK + -(-size // BLOCK) * BLOCK
    assert position in seen
    with no_hang():
        assert len(find_entries(path)) == 1


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK])
def test_a_long_row_of_blocks_about_files(tmp_path: Path, kind: bytes) -> None:
    """The library calls itself for each, and copies the attributes of all files for each file."""
    data = record("comment=x") if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE) else b"b.png\0"
    (tmp_path / "s.tar").write_bytes(block("x", data, kind) * 20_000 + block("a.png") + END)
    with no_hang():
        assert len(find_entries(tmp_path)) == 1


def test_what_is_no_plain_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.tar"
    kinds = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    odd = b"".join(header(f"{kind.decode()}.png", 10 ** 9, kind) for kind in kinds)  # their size says nothing
    sparse = block("x", record("GNU.sparse.major=1") + record("GNU.sparse.minor=0"), tarfile.XHDTYPE) + block("s.png")
    sparse += block("t.png", PICTURE, tarfile.GNUTYPE_SPARSE)
    unknown = block("u.png", PICTURE, b"V")
    path.write_bytes(odd + sparse + unknown + block("empty.png", b"") + block("a.png") + END)
    entries = find_entries(path)
    assert [entry.member for entry in entries] == ["a.png"] and read_entry(entries[0]).size == (8, 8)
    assert [line for line in caplog.messages if "1 pictures are left out" in line] == caplog.messages


def test_pictures_too_large_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.tar"
    with open(path, "wb") as file:
        file.write(header("b.png", large(MAX_PICTURE + 1)))
        file.seek(-(-(MAX_PICTURE + 1) // BLOCK) * BLOCK, os.SEEK_CUR)  # a hole, which takes no room
        file.write(block("a.png") + END)
    before = reset_peak()
    entries = find_entries(path)
    assert [entry.member for entry in entries] == ["a.png"] and read_entry(entries[0]).size == (8, 8)
    assert "1 pictures are left out" in caplog.text
    assert peak() - before < MEMORY


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "s.tar")
    with no_hang():
        assert find_entries(tmp_path) == []
    assert "s.tar" in caplog.text


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_others_are_read_as_the_library_reads_them(tmp_path: Path, form: int) -> None:
    names = ["a.png", "d/" * 40 + "x" * 60 + ".png", "é.png", "last.png"]
    if form != tarfile.USTAR_FORMAT:
        names[1:1] = [LONG, "ü" * 150 + ".png"]
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 700 * number, 1.5
            archive.addfile(member, io.BytesIO(bytes(member.size)))
            link = tarfile.TarInfo(f"{number}")
            link.type, link.linkname = tarfile.SYMTYPE, "z" * (50 if form == tarfile.USTAR_FORMAT else 150)
            archive.addfile(link)
    with tarfile.open(path) as archive, open(path, "rb") as file:
        expected = [(member.name, member.offset_data, member.size) for member in archive if member.isfile()]
        assert [(member.name, member.offset, member.size) for member in members(file)] == expected


def test_flipped_bytes_never_end_more_than_a_shard(tmp_path: Path) -> None:
    whole = block("a.png") + block("x", record(f"path={LONG}"), tarfile.XHDTYPE) + block("b.png") + block("c.png") + END
    draw, path = random.Random(0), tmp_path / "s.tar"
    for _ in range(500):
        damaged = bytearray(whole)
        place = draw.choice((0, 2 * BLOCK, 4 * BLOCK, 6 * BLOCK))
        for _ in range(draw.randint(1, 3)):
            damaged[place + draw.randrange(BLOCK)] = draw.randrange(256)
        raw = damaged[place:place + BLOCK]
        raw[148:156] = b" " * 8
        damaged[place + 148:place + 156] = b"%06o\0 " % sum(raw)  # else nothing behind the checksum is looked at
        path.write_bytes(damaged)
        with no_hang():
            entries = find_entries(path)
        ends = [entry.offset + entry.size for entry in entries]
        assert ends == sorted(ends) and all(entry.size > 0 and end <= len(whole) for entry, end in zip(entries, ends))
