"""The recipe must not drift: checksums of the numbers that the reference cases were made with."""
from __future__ import annotations

import json
import zlib

import pytest
from recipe import CASES, manifest_weights, picture


@pytest.mark.parametrize(("manifest", "checksum"), [
    ("sr.transformer", 3345968795), ("sr.vqvae", 1471826697), ("c2i.transformer", 1283648884),
    ("train.transformer", 1898253760), ("vqvae.vqvae", 2392883168),
])
def test_weights(manifest: str, checksum: int):
    settings = json.loads((CASES / f"{manifest.split('.')[0]}.json").read_text())
    total = 0
    for tensor in manifest_weights(CASES / f"{manifest}.json", settings["weights_seed"]).values():
        total = zlib.crc32(tensor.numpy().tobytes(), total)
    assert total == checksum


def test_picture():
    assert zlib.crc32(picture(3, 2, 128).numpy().tobytes()) == 3428012843
