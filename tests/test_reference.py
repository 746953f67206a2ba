"""Every reference case in the folder that REFERENCE_CASES names (default: tests/reference/cases), by its type
(reference_cases.py); tests/gpu/test_reference_on_gpu.py has those of the networks on a GPU."""
from __future__ import annotations

from pathlib import Path

import pytest
from reference_cases import arrays_of, cases_of, check_generate, check_train, check_vqvae, settings_of

from inference.render import adain_color_fix, wavelet_color_fix
from training.schedule import Schedule

SCHEDULE, RECOLOURED = 1e-6, 1


def test_the_folder_holds_every_kind_of_case() -> None:
    assert all(cases_of(kind) for kind in ("generate", "vqvae", "train", "color", "schedule"))


@pytest.mark.parametrize("name", cases_of("generate"))
def test_generate(name: str, tmp_path: Path) -> None:
    check_generate(name, tmp_path)


@pytest.mark.parametrize("name", cases_of("vqvae"))
def test_vqvae(name: str, tmp_path: Path) -> None:
    check_vqvae(name, tmp_path)


@pytest.mark.parametrize("name", cases_of("train"))
def test_train(name: str, tmp_path: Path) -> None:
    check_train(name, tmp_path)


@pytest.mark.parametrize("name", cases_of("schedule"))
def test_schedule(name: str) -> None:
    for row in settings_of(name)["rows"]:
        schedule = Schedule(row["schedule"], row["max_iters"], row["warmup_iters"], row["warmup_start"], row["final"])
        for iteration, (rate, weight_decay) in enumerate(row["lr_wd"]):
            assert schedule.rate(iteration) == pytest.approx(rate, abs=SCHEDULE)
            assert schedule.weight_decay(iteration, row["wd"], row["wd_end"]) == pytest.approx(
                weight_decay, abs=SCHEDULE)


@pytest.mark.parametrize("name", cases_of("color"))
def test_color(name: str) -> None:
    arrays = {key: value.permute(2, 0, 1).float() for key, value in arrays_of(name).items()}
    target, source = arrays["target"] / 255, arrays["source"] / 255
    for method, fix in (("adain", adain_color_fix), ("wavelet", wavelet_color_fix)):
        found = (fix(target, source) * 255).round()
        assert (found - arrays[method]).abs().max() <= RECOLOURED
