"""The file of a calibration, and how far a picture is from those it knows."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.settings import calibration_of
from models.error_model import (
    FOLDER_FILE,
    FORMAT,
    LEAST_ERROR,
    Calibration,
    ErrorHead,
    Fitted,
    calibration_file,
    load_calibration,
)
from models.weights.load import identity
from tests.conftest import small_model
from utils.errors import UserError

INPUTS = {"one": ("a", "b", "c"), "several": ("a", "b", "c", "d")}
MODEL = "folder (sha256 0123456789abcdef)"


def random_head(inputs: int) -> ErrorHead:
    head = ErrorHead(inputs)
    for buffer in head.buffers():
        buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return head.eval().requires_grad_(False)


def saved(path: Path, model: str = MODEL) -> Calibration:
    torch.manual_seed(0)
    heads = {name: random_head(len(names)) for name, names in INPUTS.items()}
    calibration = Calibration(Fitted(model, INPUTS["several"], 40, "photos"), heads)
    calibration.save(path)
    return calibration


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    written = saved(tmp_path / "new" / "u.safetensors")
    read = load_calibration(tmp_path / "new" / "u.safetensors", MODEL, INPUTS)
    assert read.fitted == written.fitted and [p.name for p in (tmp_path / "new").iterdir()] == ["u.safetensors"]
    for samples, count in ((0, 3), (1, 4), (9, 4)):
        inputs = torch.randn(count, 5, 7)
        assert torch.equal(read.head(samples)(inputs), written.head(samples)(inputs))
        assert read.head(samples).strangeness(inputs[:, 0, 0]) == written.head(samples).strangeness(inputs[:, 0, 0])
        assert not any(each.requires_grad for each in read.head(samples).parameters())


def test_a_renamed_folder_and_other_weights(tmp_path: Path) -> None:
    saved(tmp_path / "u")
    load_calibration(tmp_path / "u", "other name (v2) (sha256 0123456789abcdef)", INPUTS)
    with pytest.raises(UserError, match=r"u: a calibration of folder \(sha256 0123456789abcdef\), not of") as refused:
        load_calibration(tmp_path / "u", "folder (sha256 0123456789abcdee)", INPUTS)
    assert "\n" not in str(refused.value) and "python -m calibration" in str(refused.value)


def change(path: Path, metadata: dict[str, str] | None = None, tensors: dict[str, torch.Tensor] | None = None,
           **fitted: object) -> None:
    """Write a calibration anew with something else in it."""
    said = {"model": MODEL, "inputs": INPUTS["several"], "crops": 40, "data": "photos", "coverage": 0.9, **fitted}
    save_file({**load_file(path), **(tensors or {})}, path,
              metadata={"format": FORMAT, "fitted": json.dumps(said), **(metadata or {})})


DAMAGES = {
    "version": lambda path: change(path, {"format": "1"}),
    "damaged": lambda path: change(path, {"fitted": "{"}),
    "a damaged": lambda path: change(path, {"fitted": "[1]"}),
    "damaged cal": lambda path: change(path, crops=None),
    "a damaged calibration": lambda path: change(path, {"fitted": '{"model": "x", "inputs": [], "crops": Infinity}'}),
    "damaged calibration": lambda path: change(path, {"fitted": "[" * 100_000}),
    "other inputs": lambda path: change(path, inputs=("a", "b", "d", "c")),
    "of other inputs": lambda path: change(path, tensors={"one.mean": torch.zeros(4)}),
    "other inputs than": lambda path: change(path, tensors={"one.more": torch.zeros(4)}),
    "numbers that are none": lambda path: change(path, tensors={"several.layers.0.bias": torch.full((32,), torch.nan)}),
    "no readable": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "no readable cal": lambda path: path.write_text("hello\nworld"),
    "not of": lambda path: change(path, model="folder (sampled sha256 0123456789abcdef)"),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, said: str) -> None:
    saved(tmp_path / "u")
    DAMAGES[said](tmp_path / "u")
    with pytest.raises(UserError) as refused:
        load_calibration(tmp_path / "u", MODEL, INPUTS)
    text = str(refused.value)
    assert said in text and "\n" not in text and text.startswith(str(tmp_path / "u"))
    assert "python -m calibration" in text


def test_a_file_without_metadata_is_of_another_version(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "u")
    with pytest.raises(UserError, match="another version"):
        load_calibration(tmp_path / "u", MODEL, INPUTS)


def test_where_it_lies(tmp_path: Path) -> None:
    assert calibration_file(tmp_path) == tmp_path / FOLDER_FILE
    for name, expected in (("VARSR.pth", "VARSR_uncertainty.safetensors"), ("a.b.pth", "a.b_uncertainty.safetensors")):
        (tmp_path / name).touch()
        assert calibration_file(tmp_path / name) == tmp_path / expected


def test_it_belongs_to_a_models_weights(weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from inference.uncertainty import input_names
    config = small_model().config
    assert calibration_of(weights, config) is None and str(weights / FOLDER_FILE) in caplog.text
    names = input_names(config)
    heads = {name: ErrorHead(len(each)) for name, each in names.items()}
    Calibration(Fitted(identity(weights), names["several"], 40, "photos"), heads).save(weights / FOLDER_FILE)
    moved = weights.rename(tmp_path / "moved")
    try:
        assert calibration_of(moved, config).fitted.crops == 40
    finally:
        moved.rename(weights)
        (weights / FOLDER_FILE).unlink()


def test_strangeness_knows_what_was_fitted() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(6, 6)
    rows = torch.randn(4000, 6) @ mixing + 3
    pictures = torch.randn(1000, 6) @ mixing * 0.5 + 3
    head = ErrorHead(6).requires_grad_(False)
    head.fit_range(rows)
    torch.testing.assert_close(head.mean, rows.mean(0))
    head.fit_familiar(pictures)
    found = torch.tensor([head.strangeness(each) for each in pictures])
    assert abs(float((found <= 1).float().mean()) - 0.99) < 0.003
    assert head.strangeness(pictures.mean(0)) < 0.05
    for axis in range(6):
        far = pictures.mean(0) + 20 * pictures.std(0)[axis] * torch.eye(6)[axis]
        assert head.strangeness(far) > 3
    # further along the axis on which the pictures differ least
    _, axes = torch.linalg.eigh(torch.cov(((pictures - head.mean) / head.deviation).T))
    least, most = (head.strangeness(pictures.mean(0) + 2 * axes[:, i] * head.deviation) for i in (0, -1))
    assert least > 1.5 * most


def test_a_head_gives_an_error_for_every_input() -> None:
    torch.manual_seed(0)
    head = ErrorHead(3).requires_grad_(False)
    errors = head(torch.randn(3, 4, 6) * 1e4)
    assert errors.shape == (4, 6) and bool(torch.isfinite(errors).all()) and float(errors.min()) >= LEAST_ERROR
    rows = torch.randn(3, 4, 6)
    torch.testing.assert_close(head(rows)[2, 5], head(rows[:, 2:3, 5:6])[0, 0])
    head.fit_range(torch.ones(50, 3))  # inputs that are all the same
    assert bool(torch.isfinite(head(torch.ones(3, 1, 1))).all())
