"""The converter's command line."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_model
from recipe import SMALL, config_weights, write_published_checkpoint
from safetensors.torch import load_file

from models.config import FULL_PRECISION, GenerationConfig
from models.varsr import VARSR
from models.weights.convert import main
from models.weights.load import load_vqvae
from models.weights.save import save_pretrained
from models.weights.transfer import transfer_weights
from models.weights.unpickle import CheckpointError, load_pickle
from train import main as train


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write_published_checkpoint(tmp_path / "published", *config_weights(SMALL))


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16),
                                             ("fp16", torch.float16)])
def test_published_becomes_a_folder(tmp_path: Path, published: Path, name: str, dtype: torch.dtype):
    output = tmp_path / "out"
    assert main([str(published), str(output), "--dtype", name]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.safetensors"]
    written = load_file(output / "model.safetensors")
    assert {tensor.dtype for key, tensor in written.items() if not key.startswith(FULL_PRECISION)} == {dtype}
    before, after = VARSR.from_pretrained(published, dtype=dtype), VARSR.from_pretrained(output, dtype=dtype)
    assert before.config == after.config
    assert all(torch.equal(tensor, after.state_dict()[key]) for key, tensor in before.state_dict().items())


def test_there_and_back(tmp_path: Path, published: Path):
    assert main([str(published), str(tmp_path / "ours")]) == 0
    assert main([str(tmp_path / "ours"), str(tmp_path / "back"), "--published"]) == 0
    for file, key in (("VARSR.pth", "var_wo_ddp"), ("VQVAE.pth", "vae_local")):
        before = load_pickle(published.parent / file)["trainer"][key]
        after = load_pickle(tmp_path / "back" / file)["trainer"][key]
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_an_inference_export_generates_the_same_bits(tmp_path: Path, name: str, dtype: torch.dtype):
    model = small_model()
    save_pretrained(model, tmp_path / "full", dtype)
    assert main([str(tmp_path / "full"), str(tmp_path / "export"), "--inference", "--dtype", name]) == 0
    full, export = (VARSR.from_pretrained(tmp_path / folder, dtype=dtype) for folder in ("full", "export"))
    lr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # its two rows are the tables' two
    options = GenerationConfig(cfg=2.0)
    assert torch.equal(export.generate(lr, options=options), full.generate(lr, options=options))
    assert not any(key.startswith(("vqvae.encoder", "vqvae.pre_quant")) or key.startswith("transformer.")
                   and "modulation" in key for key in load_file(tmp_path / "export" / "model.safetensors"))
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("full", "export")]
    assert sizes[1] < 0.7 * sizes[0]
    save_pretrained(export, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == \
        (tmp_path / "export" / "model.safetensors").read_bytes()


def test_an_inference_export_is_for_inference_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    save_pretrained(small_model().for_inference(), tmp_path / "export")
    folder = str(tmp_path / "export")
    assert main([folder, str(tmp_path / "published"), "--published"]) == 1
    assert train(["--stage", "sr", "--init", folder, "--data", folder, "--output", str(tmp_path / "run")]) == 1
    for line in capsys.readouterr().err.splitlines():
        assert "inference export" in line
    for load in (load_vqvae, lambda source: transfer_weights(small_model(), source)):
        with pytest.raises(CheckpointError, match="inference export"):
            load(folder)
    assert not (tmp_path / "published").exists() and not (tmp_path / "run").exists()


def test_failures_are_one_line_and_exit_code_one(tmp_path: Path, published: Path, capsys: pytest.CaptureFixture):
    published.write_bytes(published.read_bytes()[:1000])
    assert main([str(published), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("convert: ") and error.count("\n") == 1 and "VARSR.pth" in error
    assert not (tmp_path / "out").exists()
    assert main([str(tmp_path / "none.pth"), str(tmp_path / "out")]) == 1


def test_published_files_are_always_fp32(tmp_path: Path):
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "out"), "--published", "--dtype", "bf16"])


def test_help_does_not_import_torch():
    root = Path(__file__).parents[2]
    code = ("import sys; from models.weights.convert import parse_args; parse_args(['a', 'b']); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
