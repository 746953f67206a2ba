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


def runner(model: VARSR, **options: object) -> Runner:
    settings = RestoreSettings(GenerationConfig(cfg=1.0, top_k=1))
    return Runner(model, settings, RunOptions(SizeRequest(scale=4), **options))


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


def test_every_run_reports_its_own_jobs(model: VARSR, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet, missing = source.with_name("sheet.png"), source.with_name("missing.png")
    one = runner(model, sheet=sheet, sheet_pictures=1)
    first = one.run([Job(source, source.with_name("first.png")), Job(missing, source.with_name("none.png"))])
    alone = pixels(sheet)
    with monkeypatch.context() as patch:
        patch.setattr(inference.runner, "generate_windows", stopped)
        assert one.run([Job(source, source.with_name("stopped.png"))]).exit_code == 130
    last = one.run([Job(source, source.with_name("second.png"))])
    assert [(first.exit_code, len(first.records)), (last.exit_code, len(last.records))] == [(1, 2), (0, 1)]
    assert last.records[0].output == str(source.with_name("second.png")) and not last.failures
    assert pixels(sheet).shape == alone.shape and (pixels(sheet) != alone).any()  # one picture, of another name
