"""What the scripts choose by themselves."""
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from conftest import small_model

from inference.settings import prepare
from models.speed.packed import pack, packing_works
from utils import device as precision
from utils.device import cpu_computes_bf16, training_precision, warn_of_imitation


@pytest.mark.parametrize(("vendor", "flags", "expected"), [
    ("AuthenticAMD", "fpu avx512_bf16", True),
    ("GenuineIntel", "fpu avx512_bf16", False),
    ("GenuineIntel", "fpu avx512_bf16 amx_bf16", True),
    ("AuthenticAMD", "fpu avx2", False),
])
def test_bf16_where_it_is_faster(tmp_path: Path, vendor: str, flags: str, expected: bool) -> None:
    processor = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\nbugs\t\t: none\n\n"
    (tmp_path / "cpuinfo").write_text(2 * processor)
    assert cpu_computes_bf16(tmp_path / "cpuinfo") is expected


def test_a_system_that_does_not_tell_gets_fp32(tmp_path: Path) -> None:
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: asimd bf16\n")
    assert not cpu_computes_bf16(tmp_path / "arm") and not cpu_computes_bf16(tmp_path / "none")


@pytest.mark.skipif(not packing_works(), reason="this PyTorch packs no weights")
def test_bf16_on_a_processor_without_it_works_and_warns(monkeypatch: pytest.MonkeyPatch,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    """PyTorch's answers on a processor that has AVX2 at most."""
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def only_fp32(weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")
        return reorder(weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", only_fp32)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = prepare(small_model().bfloat16())
    assert not model.is_packed and prepare(small_model()).is_packed
    with pytest.raises(ValueError, match="no packed torch.bfloat16 products for this processor"):
        pack(model)
    with caplog.at_level(logging.WARNING):
        warn_of_imitation(torch.device("cpu"), torch.float32)
        assert not caplog.text
        warn_of_imitation(torch.device("cpu"), torch.bfloat16)
    assert "this processor only imitates bfloat16" in caplog.text


def test_an_unknown_8_bit_type_is_refused() -> None:
    for name in ("fp16", "int4", ""):
        with pytest.raises(ValueError, match=f"unknown 8-bit type '{name}': choose int8, fp8 or none"):
            prepare(small_model(), name)


@pytest.mark.skipif(not packing_works(), reason="this PyTorch packs no weights")
def test_a_second_preparation_changes_nothing_or_is_refused(pictures: torch.Tensor) -> None:
    model = prepare(small_model())
    before = model.generate(pictures)
    assert torch.equal(prepare(model).generate(pictures), before)
    with pytest.raises(ValueError, match=r"in torch\.float32 already.*fp8: load it again"):
        prepare(model, "fp8")
    eight = prepare(small_model(), "fp8")
    assert prepare(eight, "fp8") is eight
    with pytest.raises(ValueError, match="in fp8 already"):
        prepare(eight)


@pytest.mark.parametrize(("computes", "expected"), [(True, "bf16"), (False, "fp32")])
def test_training_takes_bf16_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch, computes: bool,
                                                             expected: str) -> None:
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: computes)
    assert training_precision(None, torch.device("cpu")) == expected
    assert training_precision("fp16", torch.device("cpu")) == "fp16"
