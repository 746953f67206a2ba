"""The benchmark of classes on two that are easily told apart."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import small_class_model
from PIL import Image

from benchmarks.bench_classes import SHEET_SAMPLES, main
from evaluation.metrics.efficientnet import NETWORK, REMEDY, packaged_weights
from models.weights.save import save_pretrained

pytestmark = pytest.mark.skipif(packaged_weights() is None, reason=f"no weights of {NETWORK}: {REMEDY}")


def write_classes(folder: Path) -> None:
    """Plain pictures with a little noise, dark and light ones."""
    for name, level in (("dark", 40), ("light", 210)):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(-30, 30, (80, 64, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(folder / name / f"{i}.png")


def test_crops_and_a_model_are_measured(tmp_path: Path) -> None:
    for part in ("train", "held_out"):
        write_classes(tmp_path / "set" / part)
    save_pretrained(small_class_model(names=("light", "unknown")), tmp_path / "model")
    flags = ["--data", tmp_path / "set", "--models", tmp_path / "model", "--samples", 6, "--crops", 12, "--dtype",
             "fp32", "--sheet", tmp_path / "sheet.png", "--output", tmp_path / "r.json"]
    assert main([str(flag) for flag in flags]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["classes"] == ["dark", "light"]
    crops, drawn = report["results"]["training crops"], report["results"][str(tmp_path / "model")]
    assert crops["probe_on_held_out"] == crops["probe"] == 1
    assert list(drawn["by_class"]) == ["light"]  # the only one that both know
    assert drawn["distance"] == pytest.approx(drawn["by_class"]["light"]["distance"])
    # noise of random weights is farther from real crops than other crops are
    assert drawn["distance"] > crops["of_shared_classes"]["distance"] >= 0 and drawn["nearest"] > crops["nearest"]
    assert Image.open(tmp_path / "sheet.png").size == (2 * SHEET_SAMPLES * (32 + 2), 32 + 2)
