"""What the scripts choose by themselves."""
from __future__ import annotations

from pathlib import Path

import pytest

from utils.cli import cpu_computes_bf16


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
