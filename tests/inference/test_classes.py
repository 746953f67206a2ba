"""Class-to-image: the script, the class folders, and training on them."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_class_model
from PIL import Image

import test_C2I as script
from dataloader.class_crops import ClassCrops
from dataloader.pairs import BatchLoader, ClassSource, WithLostClasses
from inference.classes import parse_classes
from models.config import ConfigError, VARSRConfig
from models.varsr import VARSR
from models.weights.save import save_pretrained
from pictures.sheets import SHEET_ROWS, ContactSheet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def class_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c2i")
    save_pretrained(small_class_model(), folder)
    return folder


@pytest.fixture()
def class_folders(tmp_path: Path) -> Path:
    """Two classes, dark and light, of one and two pictures."""
    for name, level, count in (("dark", 30, 1), ("light", 220, 2)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(-20, 20, (80, 64, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def run(*flags: object) -> int:
    return script.main([str(flag) for flag in flags])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_pictures_and_sheet(class_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ("--model", class_weights, "--dtype", "fp32", "--classes", 2, "a", "--n", 3, "--seed", 4)
    assert run(*flags, "--output", tmp_path / "x") == 0
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == sorted(
        [f"class_{c}_img_{i}.png" for c in (0, 2) for i in range(3)] + ["contact_sheet.png"])
    assert "6 pictures" in capsys.readouterr().out
    assert Image.open(tmp_path / "x" / "contact_sheet.png").width == 3 * (32 + 4)


def test_a_picture_depends_on_seed_and_place_alone(class_weights: Path, tmp_path: Path) -> None:
    flags = ("--model", class_weights, "--dtype", "fp32", "--top_k", 8, "--cfg", 1)
    assert run(*flags, "--classes", "all", "--n", 2, "--batch_size", 5, "--output", tmp_path / "x") == 0
    assert run(*flags, "--classes", 1, "--n", 2, "--batch_size", 1, "--output", tmp_path / "y") == 0
    assert run(*flags, "--classes", 1, "--n", 2, "--seed", 9, "--output", tmp_path / "z") == 0
    for i in range(2):
        x, y, z = (pixels(tmp_path / folder / f"class_1_img_{i}.png") for folder in "xyz")
        assert np.abs(x - y).max() <= 1 and np.abs(x - z).max() > 1
    assert np.abs(pixels(tmp_path / "x" / "class_1_img_0.png") - pixels(tmp_path / "x" / "class_1_img_1.png")).max() > 1


def test_the_embedded_model_draws_the_same_whatever_the_batch(tmp_path: Path,
                                                              capsys: pytest.CaptureFixture) -> None:
    """In the type that a CPU gets without a flag: in bf16, a batch of one chooses other codes."""
    for name, batch in (("x", 1), ("y", 5), ("z", 6)):
        assert run("--classes", 0, 1, 2, "--n", 2, "--batch_size", batch, "--output", tmp_path / name, "--device",
                   "cpu") == 0
    assert ", fp32" in capsys.readouterr().out
    for label in range(3):
        for i in range(2):
            x, y, z = (pixels(tmp_path / folder / f"class_{label}_img_{i}.png") for folder in "xyz")
            assert np.abs(x - y).max() <= 1 and np.abs(x - z).max() <= 1


def test_smooth_mixing_is_another_picture(class_weights: Path, tmp_path: Path) -> None:
    flags = ("--model", class_weights, "--dtype", "fp32", "--classes", 0, "--n", 1)
    assert run(*flags, "--output", tmp_path / "x") == 0
    assert run(*flags, "--more_smooth", "--output", tmp_path / "y") == 0
    x, y = (pixels(tmp_path / folder / "class_0_img_0.png") for folder in "xy")
    assert np.abs(x - y).max() > 1


@pytest.mark.parametrize("word, said", [("3", "0 to 2"), ("-1", "0 to 2"), ("zebra", "a, b, c")])
def test_unknown_classes_say_what_is_valid(class_weights: Path, tmp_path: Path, word: str, said: str,
                                           capsys: pytest.CaptureFixture) -> None:
    assert run("--model", class_weights, "--output", tmp_path / "x", f"--classes={word}") == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "x").exists()


def test_classes_from_a_file_and_all(tmp_path: Path) -> None:
    config = small_class_model().config
    (tmp_path / "wanted.txt").write_text("c 0\n")
    assert parse_classes([str(tmp_path / "wanted.txt")], config) == [2, 0]
    assert parse_classes(["1", "all"], config) == [1, 0, 2]


@pytest.mark.parametrize("content, said", [(b"", "names no classes"), (b"\x89PNG\r\n\xff", "no text file"),
                                           (b"0 {itself}", "names itself"), (b"9", "out of range")])
def test_a_file_that_lists_no_classes_is_named(class_weights: Path, tmp_path: Path, content: bytes, said: str,
                                               capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "wanted.txt").write_bytes(content.replace(b"{itself}", bytes(tmp_path / "wanted.txt")))
    assert run("--model", class_weights, "--output", tmp_path / "x", "--classes", tmp_path / "wanted.txt") == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "x").exists()
    assert said == "out of range" or "wanted.txt" in error


def test_a_restorer_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("--model", weights, "--output", tmp_path / "x") == 1
    assert "class-to-image" in capsys.readouterr().err


def test_the_sheet_is_bounded() -> None:
    sheet = ContactSheet()
    for i in range(SHEET_ROWS + 9):
        sheet.add(str(i), torch.rand(3, 8, 8))
    assert len(sheet.rows) == SHEET_ROWS and sheet.render().width == 12


def test_class_names_are_part_of_the_configuration() -> None:
    config = small_class_model().config
    assert VARSRConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="2 class names for 3"):
        VARSRConfig.from_json(config.to_json().replace('"a",', ""))


def test_crops_come_with_their_classes(class_folders: Path) -> None:
    crops = ClassCrops(class_folders, 32)
    assert crops.names == ("dark", "light")
    pictures, labels = next(BatchLoader(crops, 40))
    assert pictures.shape == (40, 3, 32, 32) and 8 < labels.sum() < 32
    assert ((pictures.float().mean((1, 2, 3)) > 127) == labels.bool()).all()
    again, _ = next(BatchLoader(crops, 40))
    assert torch.equal(pictures, again)
    with pytest.raises(FileNotFoundError, match="class folders"):
        ClassCrops(class_folders / "dark", 32)


def test_some_pictures_lose_their_class(class_folders: Path) -> None:
    drawn = ClassSource(BatchLoader(WithLostClasses(ClassCrops(class_folders, 32), 2, share=0.5), 64)).draw(CPU)
    assert drawn.lr is None and 16 < (drawn.labels == 2).sum() < 48 and drawn.target.min() >= -1


def test_held_out_pictures_have_the_same_classes(class_folders: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture) -> None:
    import train
    (tmp_path / "held_out" / "dark").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "held_out" / "dark" / "0.png")
    save_pretrained(small_class_model(names=("dark", "light")), tmp_path / "model")
    flags = ["--stage", "c2i", "--init", tmp_path / "model", "--data", class_folders, "--val_data",
             tmp_path / "held_out", "--output", tmp_path / "run", "--max_iters", 1]
    assert train.main([str(flag) for flag in flags]) == 1
    assert "holds the classes dark, --data" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_from_folders_to_pictures(class_folders: Path, tmp_path: Path) -> None:
    """train.py --stage c2i on top of a tokenizer file, then the script on what it wrote."""
    from safetensors.torch import save_file

    import train
    tokenizer = {name: value.contiguous() for name, value in small_class_model().vqvae.state_dict().items()}
    save_file(tokenizer, tmp_path / "vqvae.safetensors")
    flags = ["--stage", "c2i", "--vqvae", tmp_path / "vqvae.safetensors", "--data", class_folders, "--output",
             tmp_path / "run", "--max_iters", 4, "--batch_size", 4, "--report_every", 2, "--fp16", 0, "--val_data",
             class_folders]
    assert train.main([str(flag) for flag in [*flags, "--preset", "varsr-debug"]]) == 1  # a preset for restoring
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.config.PRESETS", {"small": small_class_model().config})
        patch.setattr("training.model.PRESETS", {"small": small_class_model().config})
        assert train.main([str(flag) for flag in [*flags, "--preset", "small"]]) == 0
    model = VARSR.from_pretrained(tmp_path / "run")
    assert model.config.class_names == ("dark", "light")
    sheet = Image.open(next((tmp_path / "run" / "sheets").glob("*.png")))
    assert sheet.size == (2 * (32 + 2), 4 * (32 + 2))  # a column a class; two rows with guidance, two without
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    report = next(line for line in lines if line["event"] == "report")
    assert report["cross_entropy"] == pytest.approx(report["training_cross_entropy"])  # the same crops here
    assert all(f"{name}_{side}" in line for line in lines[1:] for name in ("cross_entropy", "accuracy")
               for side in model.config.vqvae.scales)
    assert run("--model", tmp_path / "run", "--output", tmp_path / "C2I", "--classes", "light", "--n", 1) == 0
