"""The preset --fast: what it sets, what overrides it, and that the scripts follow it."""
from __future__ import annotations

from pathlib import Path

import pytest

import test_varsr
import test_varsr_fastvar
from inference.restore import restore
from inference.settings import fast_pruning, restore_settings
from models.config import PRESETS
from models.varsr import VARSR
from pictures.rgb import read_image


def parsed(*flags: object):
    return test_varsr.build_parser().parse_args([str(flag) for flag in flags])


def test_flags_win_over_the_preset(model: VARSR) -> None:
    own, fast = (restore_settings(parsed(*flags), model) for flags in ((), ("--fast",)))
    assert own.fastvar is None and own.generation == model.config.generation
    assert fast.fastvar == fast_pruning(model.config)
    assert fast.generation.cfg_from_scale == 2 and fast.generation.refiner_steps < model.config.refiner.sampling_steps
    given = restore_settings(parsed("--fast", "--cfg_from_scale", 1, "--refiner_steps", 7, "--cfg", 3), model)
    assert (given.generation.cfg_from_scale, given.generation.refiner_steps, given.generation.cfg) == (1, 7, 3)
    assert given.fastvar == fast.fastvar


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_pruned(preset: str) -> None:
    config = PRESETS[preset]
    assert fast_pruning(config).plan(config.vqvae.scales, config.transformer.depth)


@pytest.mark.parametrize("script", [test_varsr, test_varsr_fastvar])
def test_scripts_follow_the_preset(script, weights: Path, testset: Path, tmp_path: Path) -> None:
    source = testset / "set" / "LR" / "a.png"
    common = ["-i", str(source), "--model", str(weights), "--dtype", "fp32"]
    assert script.main([*common, "--fast", "-o", str(tmp_path / "fast.png")]) == 0
    model = VARSR.from_pretrained(weights).for_inference()
    expected = restore(model, read_image(source), restore_settings(parsed("--fast"), model))
    assert (read_image(tmp_path / "fast.png") - expected).abs().max() < 0.6 / 255
    assert script.main([*common, "--cfg_from_scale", "9", "-o", str(tmp_path / "x.png")]) == 1
