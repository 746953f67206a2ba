"""Crops packed into small shards, and the script that trains the embedded model, on them."""
from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_picture
from PIL import Image

from dataloader.assemble.crop_pack import FORMATS, encode, main, write_shards
from dataloader.entries import find_entries
from evaluation.metrics.efficientnet import REMEDY, packaged_weights
from models.varsr import VARSR

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(3):
        noise_picture(96, 160, number).save(folder / f"{number}.png")
    return folder


def pack(photographs: Path, output: Path, *more: object) -> int:
    return main(["--data", str(photographs), "--output", str(output), *map(str, more)])


def test_shards_keep_to_their_size_and_lose_nothing(tmp_path: Path) -> None:
    pictures = [bytes([number]) * (700 + 400 * number) for number in range(20)]
    shards = write_shards(pictures, tmp_path, limit=20 * 1024)
    assert len(shards) > 2 and all(shard.stat().st_size <= 20 * 1024 for shard in shards)
    read = []
    for shard in sorted(tmp_path.iterdir()):
        with tarfile.open(shard) as file:
            read += [(member.name, file.extractfile(member).read()) for member in file]
    assert [content for _, content in read] == pictures
    assert [name for name, _ in read] == [f"{number:06d}.jpg" for number in range(20)]


def test_a_picture_larger_than_a_shard_is_refused_and_nothing_stays_unfinished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="picture 1 takes .* cut smaller crops"):
        write_shards([bytes(100), bytes(50_000)], tmp_path, limit=20 * 1024)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("format_", FORMATS)
def test_packed_crops_are_parts_of_the_photographs(photographs: Path, tmp_path: Path, format_: str) -> None:
    assert pack(photographs, tmp_path / "packs", "--count", 5, "--size", 64, "--format", format_) == 0
    crops = [Image.open(io.BytesIO(entry.path.read_bytes()[entry.offset:entry.offset + entry.size]))
             for entry in find_entries(tmp_path / "packs")]
    assert len(crops) == 5 and all(crop.size == (64, 64) and crop.format == format_.upper() for crop in crops)
    whole = [np.asarray(Image.open(path), dtype=np.int16) for path in sorted(photographs.iterdir())]
    crop = np.asarray(crops[0], dtype=np.int16)
    nearest = min(np.abs(picture[top:top + 64, left:left + 64] - crop).mean()
                  for picture in whole for top in range(33) for left in range(97))
    assert nearest < 8, "noise is what codecs keep worst; any other place is 85 levels away"


@pytest.mark.parametrize("format_", FORMATS)
def test_colours_keep_their_full_resolution(format_: str) -> None:
    stripes = np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::2, 0] = 255
    stripes[:, 1::2, 2] = 255
    again = np.asarray(Image.open(io.BytesIO(encode(stripes, format_))), dtype=np.int16)
    assert np.abs(again - stripes).mean() < 8


def test_no_photographs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert pack(tmp_path / "none", tmp_path / "packs") == 1
    assert capsys.readouterr().err.startswith("crop_pack: ")


@pytest.mark.slow
@pytest.mark.skipif(packaged_weights() is None, reason=f"the perceptual network is not installed: {REMEDY}")
def test_the_embedded_training_runs_from_packs_to_a_model(photographs: Path, tmp_path: Path) -> None:
    assert pack(photographs, tmp_path / "packs", "--count", 6, "--size", 48) == 0
    small = {f"{stage}_BATCH": "4" for stage in ("TOKENIZER", "SR", "FAITHFUL", "DETAIL")}

    def train(runs: Path, minutes: float, **more: str) -> VARSR:
        run = subprocess.run(
            ["bash", str(ROOT / "examples/train_embedded.sh"), str(tmp_path / "packs"), str(runs)],
            env={**os.environ, **small, "MINUTES": str(minutes), "FAITHFUL_POOL": "4", "DETAIL_POOL": "4",
                 "PRESET": "varsr-debug", "PYTHON": sys.executable, "FRESH": "2", "GROUP": "2", "DEVICE": "cpu",
                 "VAL_DATA": str(photographs), **more},
            cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        return VARSR.from_pretrained(runs / "model", dtype=torch.float32)
    model = train(tmp_path / "runs", 0.05)
    assert model.config.name == "varsr-debug"
    for stage in ("tokenizer", "sr", "faithful", "detail"):
        lines = [json.loads(line) for line in (tmp_path / "runs" / stage / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["event"] == "report" and lines[-1]["iteration"] < 5000  # ended by the clock
    again = train(tmp_path / "again", 0.05, INIT=str(tmp_path / "runs" / "model"))
    changed = {name.split(".")[1] for name, value in again.state_dict().items()
               if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"faithful", "detail"}


def test_shards_of_an_earlier_run_go(tmp_path: Path) -> None:
    write_shards([bytes(9000)] * 6, tmp_path, limit=20 * 1024)
    (tmp_path / "mine.tar").write_bytes(b"")
    shards = write_shards([bytes(9000)], tmp_path, limit=20 * 1024)
    assert sorted(tmp_path.iterdir()) == [*shards, tmp_path / "mine.tar"] and len(shards) == 1
