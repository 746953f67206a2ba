"""The runner as programs embed it: what one run leaves behind is nothing to another one."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference.large
import inference.runner
from inference.jobs import Job, SizeRequest
from inference.runner import Runner, RunOptions
from inference.settings import RestoreSettings
from models.config import GenerationConfig
from models.speed.packed import exact_levels, pack, packing_works
from models.varsr import VARSR
from tests.conftest import noise_picture, small_model

EIGHT_BIT = pytest.mark.skipif(not packing_works() or exact_levels() is None, reason="no 8-bit products here")


@pytest.fixture()
def source(tmp_path: Path) -> Path:
    noise_picture(20, 22).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def runner(model: VARSR) -> Runner:
    return Runner(model, RestoreSettings(GenerationConfig(cfg=1.0, top_k=1)), RunOptions(SizeRequest(scale=4)))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("eight_bit", [False, pytest.param(True, marks=EIGHT_BIT)])
def test_another_model_starts_a_stopped_picture_afresh(model: VARSR, source: Path, monkeypatch: pytest.MonkeyPatch,
                                                       eight_bit: bool) -> None:
    other = pack(small_model(), "int8") if eight_bit else small_model(seed=1)
    monkeypatch.setattr(inference.runner, "LARGE_WINDOWS", 3)
    parts, whole = source.with_name("parts.png"), source.with_name("whole.png")
    with monkeypatch.context() as patch:
        patch.setattr(inference.large, "_render_rows", stopped)  # all latents are there
        assert runner(model).run([Job(source, parts)]).exit_code == 130
    for path in (parts, whole):
        assert runner(other).run([Job(source, path)]).exit_code == 0
    assert (pixels(parts) == pixels(whole)).all()
