"""train.py as its users run it: flags, files in their place, refusals, starting weights, several processes, kills."""
from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import noise_picture, small_class_model, small_model
from safetensors.torch import load_file

import train
from dataloader.photo_crops import MIRRORED, UPRIGHT
from evaluation.metrics.efficientnet import REMEDY, packaged_weights
from models.config import PRESETS
from models.initialization import initialize
from models.varsr import VARSR
from models.weights.save import save_pretrained
from models.weights.tokenizer_file import write_tokenizer
from training.flags import build_parser, parse
from training.perceptual import Perceptual
from training.setup import class_crops

ROOT = Path(__file__).resolve().parents[2]
SAME = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a tokenizer and a whole small model."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "pictures").mkdir()
    for seed in range(4):
        noise_picture(80, 96, seed).save(folder / "pictures" / f"{seed}.png")
    save_pretrained(small_model(), folder / "model")
    write_tokenizer(small_model().vqvae, folder / "vqvae.safetensors")
    return folder


def flags(place: Path, output: Path, *more: object) -> list[str]:
    return [str(flag) for flag in (
        "--preset", "varsr-debug", "--vqvae", place / "vqvae.safetensors", "--data", place / "pictures", "--output",
        output, "--max_iters", 6, "--batch_size", 2, "--fp16", 0, "--log_every", 1, "--device", "cpu", *more)]


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line that a call ends with."""
    capsys.readouterr()
    try:
        code = train.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    message = capsys.readouterr().err
    assert code == 1 and message.count("\n") == 1, message
    return message


# ---- flags

def test_the_published_command_line_is_understood() -> None:
    line = ("--depth=24 --batch_size=4 --ep=5 --fp16=1 --tblr=5e-5 --alng=1e-4 --wpe=0.01 --wandb_flag=True --fuse=0 "
            "--exp_name=VARSR")
    args = parse(build_parser(None), line.split())
    assert (args.depth, args.batch_size, args.ep, args.fp16, args.tblr, args.alng, args.wpe, args.wandb_flag, args.fuse,
            args.exp_name) == (24, 4, 5.0, 1, 5e-5, 1e-4, 0.01, True, False, "VARSR")
    line += (" --pn=1_2_3_4_6_9_13_18_24_32 --patch_size=16 --saln=False --anorm=True --tfast=0 --vfast=0 --seed=1 "
             "--workers=-1 --hflip=False --mid_reso=1.125 --ls=0.1 --ac=2 --wp=0 --wp0=0.005 --sche=lin0 --twd=0.05 "
             "--twde=0 --opt=adamw --afuse=True --tclip=2 --hd=0.02 --aln=0.5 --ini=-1 --tf32=True "
             "--vae_model_path=a --var_pretrain_path=b --valid_data_path=c")
    args = parse(build_parser(None), line.split())
    assert args.pn == (1, 2, 3, 4, 6, 9, 13, 18, 24, 32) and (args.vqvae, args.init, args.val_data) == ("a", "b", "c")


@pytest.mark.parametrize("arguments, said", [
    (("--pg=0.8",), "--pg cannot act"), (("--anorm=False",), "normalises"), (("--fuse=1",), "--fuse"),
    (("--depth=4", "--preset=varsr-debug"), "--depth stands in place of --preset"),
    (("--ep=1", "--max_iters=5"), "--ep and --max_iters"), (("--mid_reso=1.1",), "--mid_reso cannot act"),
    (("--minutes=5", "--max_iters=5"), "--max_iters and --minutes"), (("--minutes=0",), "--minutes"),
    (("--data_on_device", "--workers=2"), "--workers cannot act with --data_on_device"),
    (("--data_on_device", "--crops=centre"), "--crops centre"), (("--fresh=8",), "--fresh cannot act with --stage sr"),
    (("--data_on_device", "--stage=c2i"), "--data_on_device cannot act with --stage c2i"),
    (("--stage=decoder", "--error_rate=0.1"), "--error_rate cannot act with --stage decoder"),
    (("--stage=c2i", "--light=0.5"), "--light cannot act with --stage c2i"),
    (("--stage=c2i", "--depth=16", "--mid_reso=1.1"), "--mid_reso cannot act with --stage c2i"),
    (("--adversarial_weight=1",), "--adversarial_weight cannot act with --stage sr"),
    (("--stage=decoder", "--detail_width=8"), "--detail_width cannot act with --stage decoder"),
    (("--stage=detail", "--adversary=all"), "invalid choice: 'all'"),
    (("--fsdp", "--fp16=2", "--opt=muon"), "--opt muon"), (("--stage=decoder", "--opt=muon"), "--opt cannot act"),
    (("--fsdp", "--fp16=1"), "--fsdp has no loss scaler"), (("--nonsense",), "--nonsense"),
    (("--device=cpu", "--tf32=True"), "--tf32 cannot act on a CPU"), (("--patch_size=16",), "down-samples by 8"),
    (("--bs=3", "--ac=2", "--device=cpu"), "multiple of 2"), (("--config=/no/such.yaml",), "/no/such.yaml"),
    (("--wp=1.5",), "--wp"), (("--data=/no/such",), "/no/such"), (("--vqvae=/no/such",), "/no/such"),
    (("--preset=huge",), "unknown preset 'huge'"), (("--sche=zigzag",), "zigzag"),
])
def test_what_cannot_act_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                    arguments: tuple[str, ...], said: str) -> None:
    base = {"--vqvae": place / "vqvae.safetensors", "--data": place / "pictures", "--output": tmp_path / "run",
            "--max_iters": 1}
    given = {argument.split("=")[0] for argument in arguments}
    if not given & {"--stage", "--depth", "--preset"}:
        base["--preset"] = "varsr-debug"
    if "--stage" in given:
        del base["--vqvae"]
    line = [f"{flag}={value}" for flag, value in base.items() if flag not in given]
    assert said in refusal(capsys, *line, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_file_in_place_of_flags(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pairs = [flag.removeprefix("--") for flag in flags(place, tmp_path / "a")]
    values = dict(zip(pairs[::2], pairs[1::2]))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**values, "max_iters": 3, "negative_share": 0.25, "wandb_flag": False}))
    assert train.main(["--config", str(file), "--output", str(tmp_path / "b"), "--seed", "5"]) == 0
    start = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[0])
    assert start["max_iters"] == 3 and start["seed"] == 5 and not (tmp_path / "a").exists()
    file.write_text("learning_speed: 3\n")
    assert "--learning_speed" in refusal(capsys, "--config", file)
    file.write_text("- 3\n")
    assert "flag: value" in refusal(capsys, "--config", file)


def test_epochs_batches_and_rates(place: Path, tmp_path: Path) -> None:
    """Four pictures, steps of 2 x 2 samples: three epochs are three steps; the rate is multiplied by the parts."""
    line = [flag for flag in flags(place, tmp_path) if flag != "--max_iters" and flag != "6"]
    line = line[:line.index("--batch_size")] + line[line.index("--batch_size") + 2:]
    assert train.main([*line, "--bs", "4", "--ac", "2", "--ep", "3", "--tblr", "1e-3", "--tclip", "0", "--ls", "0.1",
                       "--twd", "0.1", "--twde", "0.2", "--wp", "0.3", "--hflip", "False", "--checkpointing"]) == 0
    start = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    wanted = {"max_iters": 3, "batch_size": 2, "accumulation": 2, "learning_rate": 2e-3, "clip": 0.0,
              "label_smoothing": 0.1, "weight_decay": 0.1, "final_weight_decay": 0.2, "warmup_share": 0.3}
    assert {name: start[name] for name in wanted} == wanted


# ---- starting weights

def test_class_to_image_weights_start_super_resolution(place: Path, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    source = small_class_model()
    save_pretrained(source, tmp_path / "c2i")
    line = flags(place, tmp_path / "run", "--init", tmp_path / "c2i", "--max_iters", 1, "--tblr", 1e-9)
    with caplog.at_level(logging.INFO):
        assert train.main(line) == 0
    assert "tensors taken" in caplog.text and "resized transformer.class_embedding.weight" in caplog.text
    assert "transformer.prefix_encoder" in caplog.text  # which starts fresh
    result = VARSR.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(result.transformer.head.weight, source.transformer.head.weight, atol=1e-6, rtol=0)
    name = "vqvae.encoder.conv_in.weight"  # of --vqvae, not of the file
    assert torch.equal(result.state_dict()[name], small_model().state_dict()[name])


def test_without_a_preset_a_fresh_model_has_the_size_of_its_start(place: Path, tmp_path: Path) -> None:
    """As the weights of another size could not be taken: here two heads become one, and the feed-forward is halved."""
    config = small_class_model().config
    transformer = dataclasses.replace(config.transformer, depth=1, num_heads=1, ffn_ratio=2)
    source = VARSR(dataclasses.replace(config, transformer=transformer,
                                       refiner=dataclasses.replace(config.refiner, width=24)))
    initialize(source)
    save_pretrained(source, tmp_path / "c2i")
    line = flags(place, tmp_path / "run", "--init", tmp_path / "c2i", "--max_iters", 1, "--tblr", 1e-9)
    preset = line.index("--preset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.model.PRESETS", {"varsr-tiny": PRESETS["varsr-debug"]})
        assert train.main(line[:preset] + line[preset + 2:]) == 0
    result = VARSR.from_pretrained(tmp_path / "run")
    assert result.config.is_super_resolution and result.config.refiner.width == 24
    for name in ("transformer.blocks.0.attention.qkv.weight", "refiner.blocks.0.mlp.0.weight"):
        torch.testing.assert_close(result.state_dict()[name], source.state_dict()[name], atol=1e-6, rtol=0)


def test_a_whole_model_goes_on(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = ("--data", place / "pictures", "--device", "cpu", "--output", tmp_path / "run", "--max_iters", 1, "--tblr",
            1e-9, "--fp16", 0, "--batch_size", 2)
    assert train.main([str(flag) for flag in (*base, "--init", place / "model")]) == 0
    before, after = (VARSR.from_pretrained(folder).state_dict() for folder in (place / "model", tmp_path / "run"))
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert "--hd cannot act" in refusal(capsys, *base, "--init", place / "model", "--hd", 1)
    assert "a tokenizer" in refusal(capsys, *base, "--preset", "varsr-debug")


def test_the_published_line_needs_the_published_tokenizer(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("training.model.PUBLISHED_TOKENIZER", tmp_path / "VQVAE.pth")
    said = refusal(capsys, "--depth=24", "--data", place / "pictures", "--output", tmp_path / "run")
    assert str(tmp_path / "VQVAE.pth") in said


def test_larger_lr_features_keep_the_pictures(place: Path, tmp_path: Path) -> None:
    before = VARSR.from_pretrained(place / "model")
    base = ("--stage", "decoder", "--data", place / "pictures", "--device", "cpu", "--max_iters", 1, "--tblr", 1e-9,
            "--fp16", 0, "--batch_size", 2, "--pool_size", 4)
    for init, output, *larger in (
            (place / "model", "a", "--fidelity_width", 8, "--fidelity_blocks", 1),
            (tmp_path / "a", "b", "--fidelity_blocks", 3, "--fidelity_pixels", 4),
            (tmp_path / "b", "c", "--fidelity_width", 12, "--fidelity_blocks", 2)):
        assert train.main([str(flag) for flag in (*base, "--init", init, "--output", tmp_path / output, *larger)]) == 0
    middle, after = (VARSR.from_pretrained(tmp_path / name) for name in "bc")
    assert middle.config.vqvae.fidelity_blocks == 3 and len(middle.vqvae.fidelity.levels[0]) == 3
    assert after.vqvae.fidelity.pixels.conv_in.out_channels == 4
    lr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(after.generate(lr), before.generate(lr), atol=1e-4, rtol=0)


def test_a_faithful_branch_is_added_and_all_else_kept(place: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    base = ("--data", place / "pictures", "--device", "cpu", "--fp16", 0, "--batch_size", 2, "--pool_size", 4,
            "--fresh", 2)
    shape = ("--faithful_width", 8, "--faithful_blocks", 1)
    line = [str(flag) for flag in ("--stage", "faithful", "--init", place / "model", "--output", tmp_path / "run",
                                   *base, *shape, "--max_iters", 3)]
    assert train.main(line) == 0
    before, after = VARSR.from_pretrained(place / "model"), VARSR.from_pretrained(tmp_path / "run")
    assert (after.config.vqvae.faithful_width, after.config.vqvae.faithful_blocks) == (8, 1)
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    for refused, stage in ((("--faithful_width", 8), "detail"), (("--rim_weight", 1), "faithful"),
                           (("--lattice_weight", 1), "faithful"), (("--contrast_weight", 1), "faithful"),
                           (("--coarse_weight", 1), "faithful"), (("--shift_weight", 1), "faithful"),
                           (("--right_share", 1), "faithful"),
                           (("--fidelity_width", 8), "faithful")):
        assert "cannot act" in refusal(capsys, *base, "--stage", stage, "--init", tmp_path / "run", *refused)
    said = refusal(capsys, *base, "--stage", "decoder", "--init", tmp_path / "run", "--output", tmp_path / "other")
    assert "--stage faithful" in said


def detail_line(place: Path, output: Path, *more: object) -> list[str]:
    return [str(flag) for flag in (
        "--stage", "detail", "--init", place / "model", "--data", place / "pictures", "--output", output,
        "--batch_size", 2, "--pool_size", 4, "--fp16", 0, "--log_every", 1, "--device", "cpu", *more)]


@pytest.mark.skipif(packaged_weights() is None, reason=f"the perceptual network is not installed: {REMEDY}")
def test_a_detail_branch_is_added_and_all_else_kept(place: Path, tmp_path: Path) -> None:
    shape = ("--detail_width", 8, "--detail_blocks", 1)
    assert train.main(detail_line(place, tmp_path / "run", *shape, "--max_iters", 3)) == 0
    before, after = VARSR.from_pretrained(place / "model"), VARSR.from_pretrained(tmp_path / "run")
    assert (after.config.vqvae.detail_width, after.config.vqvae.detail_blocks) == (8, 1)
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    # another round goes on with the branch
    assert train.main(detail_line(tmp_path, tmp_path / "again", "--init", tmp_path / "run", "--max_iters", 1,
                                  "--data", place / "pictures", "--tblr", 1e-12)) == 0
    again = VARSR.from_pretrained(tmp_path / "again").vqvae.detail
    torch.testing.assert_close(again.conv_in.weight, after.vqvae.detail.conv_in.weight, atol=1e-6, rtol=0)


@pytest.mark.skipif(packaged_weights() is None, reason=f"the perceptual network is not installed: {REMEDY}")
def test_a_detail_branch_is_added_to_a_class_to_image_model(place: Path, tmp_path: Path) -> None:
    save_pretrained(small_class_model(), tmp_path / "c2i")
    line = detail_line(place, tmp_path / "run", "--stage", "c2i_detail", "--init", tmp_path / "c2i", "--data",
                       class_folders(place, tmp_path / "classes", "abc"), "--detail_width", 8, "--detail_blocks", 1,
                       "--max_iters", 2)
    assert train.main(line) == 0
    before, after = VARSR.from_pretrained(tmp_path / "c2i"), VARSR.from_pretrained(tmp_path / "run")
    assert after.config.vqvae.detail_width == 8 and not after.config.vqvae.detail_lr
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name


def test_the_detail_stage_names_what_it_needs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("training.perceptual.find_perceptual", lambda device: Perceptual(description="none, get one"))
    assert "none, get one" in refusal(capsys, *detail_line(place, tmp_path / "run", "--max_iters", 1))
    assert "continues from a trained" in refusal(capsys, "--stage", "detail", "--data", place / "pictures", "--output",
                                                 tmp_path / "run", "--device", "cpu")


def test_a_judge_that_is_missing_is_named_where_it_was_asked_for(place: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("training.perceptual.find_perceptual", lambda device: Perceptual(object(), None, "maps"))
    assert "--perceptual_weight 0.5 needs" in refusal(
        capsys, *detail_line(place, tmp_path / "run", "--max_iters", 1, "--perceptual_weight", 0.5))


def class_folders(place: Path, folder: Path, names: str) -> Path:
    for label in names:
        shutil.copytree(place / "pictures", folder / label)
    return folder


def test_classes_of_other_names_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_pretrained(small_class_model(names=("a", "b", "c")), tmp_path / "c2i")
    others = class_folders(place, tmp_path / "others", "abd")
    message = refusal(capsys, "--stage", "c2i", "--init", tmp_path / "c2i", "--data", others, "--output",
                      tmp_path / "run", "--max_iters", 1, "--device", "cpu")
    assert "a, b, d" in message and "a, b, c" in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize("hflip, symmetries", [(None, MIRRORED), (True, MIRRORED), (False, UPRIGHT)])
def test_pictures_of_classes_are_mirrored_as_was_asked(place: Path, tmp_path: Path, hflip: bool | None,
                                                       symmetries: int) -> None:
    folder = class_folders(place, tmp_path / "classes", "abc")
    args = argparse.Namespace(data=folder, val_data=None, hflip=hflip)
    crops, _ = class_crops(args, small_class_model().config)
    assert {each.symmetries for each in crops._crops} == {symmetries}


def test_lr_features_of_another_decoder_start_silent(place: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    debug = PRESETS["varsr-debug"]
    seeing = dataclasses.replace(debug, vqvae=dataclasses.replace(debug.vqvae, fidelity_width=8, fidelity_pixels=4))
    monkeypatch.setitem(PRESETS, "varsr-debug", seeing)
    torch.manual_seed(0)
    source = VARSR(seeing)
    for parameter in source.vqvae.fidelity.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(source, tmp_path / "seeing")
    line = flags(place, tmp_path / "run", "--init", tmp_path / "seeing", "--max_iters", 1, "--tblr", 1e-9)
    assert train.main(line) == 0
    vqvae = VARSR.from_pretrained(tmp_path / "run").vqvae
    assert torch.equal(vqvae.fidelity.conv_in.weight, source.vqvae.fidelity.conv_in.weight)
    latent, lr = torch.randn(1, 8, 4, 4), torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(vqvae.decode(latent, lr), vqvae.decode(latent))


# ---- several processes

def torchrun(line: list[str], processes: int = 2) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                           str(processes), str(ROOT / "train.py"), *line], env=environment, capture_output=True,
                          text=True, timeout=240)


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """One process with batches of four, 20 steps."""
    line = flags(place, place / "alone", "--max_iters", 20, "--batch_size", 4, "--group", 2, "--workers", 1)
    assert train.main(line) == 0
    return place / "alone"


@pytest.mark.parametrize("stage", ["sr", "decoder"])
def test_crops_cut_on_the_device_train_the_same_model(place: Path, tmp_path: Path, stage: str,
                                                      resident_crops: list[str]) -> None:
    for name, more in (("host", ()), ("device", ("--data_on_device",))):
        line = flags(place, tmp_path / name, "--max_iters", 3, *more) if stage == "sr" else [
            "--stage", stage, "--init", str(place / "model"), "--data", str(place / "pictures"), "--output",
            str(tmp_path / name), "--max_iters", "3", "--fresh", "3", "--pool_size", "6", "--fp16", "0",
            "--device", "cpu", *more]
        assert train.main(line) == 0 and bool(resident_crops) == (name == "device")
    host, device = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("host", "device"))
    assert host == device


@pytest.mark.slow
def test_two_processes_end_by_the_clock_together(place: Path, tmp_path: Path) -> None:
    line = [flag for flag in flags(place, tmp_path, "--minutes", 0.1) if flag not in ("--max_iters", "6")]
    finished = torchrun(line)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert (tmp_path / "model.safetensors").is_file() and len(losses(tmp_path)) < 5000


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--fsdp",)])
def test_two_processes_take_the_same_steps(place: Path, alone: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    line = flags(place, tmp_path, "--max_iters", 20, "--batch_size", 2, "--group", 2, *more)
    finished = torchrun(line)
    assert finished.returncode == 0, finished.stderr[-2000:]
    torch.testing.assert_close(torch.tensor(losses(tmp_path)), torch.tensor(losses(alone)), **SAME)
    expected = load_file(alone / "model.safetensors")
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3)


def test_accumulated_parts_take_the_same_steps(place: Path, tmp_path: Path) -> None:
    runs = {"whole": ("--batch_size", 4), "parts": ("--batch_size", 2, "--ac", 2, "--tblr", 2.5e-5)}
    for name, more in runs.items():
        assert train.main(flags(place, tmp_path / name, "--group", 2, "--workers", 1, *more)) == 0
    whole, parts = (torch.tensor(losses(tmp_path / name)) for name in runs)
    torch.testing.assert_close(parts, whole, **SAME)


@pytest.mark.slow
def test_one_bad_process_ends_all_with_one_line(place: Path, tmp_path: Path) -> None:
    finished = torchrun(flags(place, tmp_path, "--bs", 3))
    assert finished.returncode != 0 and "--bs stands in place of --batch_size" in finished.stderr
    assert not any(tmp_path.iterdir())


# ---- kills

# Forks a training and kills it, again and again, until it has been killed often enough; then lets it finish. Every
# other time it dies on its way to the first step, else soon after a state that is new, wherever it is then.
KILLER = """
import os, pathlib, random, signal, sys, time
# what every attempt needs, once
import train, torch, torch._dynamo, torch.utils.tensorboard, training.setup, training.run, training.loop
import training.transformer, training.validation, models.weights.save, models.weights.tokenizer_file
import dataloader.held_out, dataloader.photo_crops
kills, states, *line = sys.argv[1:]
rolls = random.Random(0)

def names():
    return {path.name for path in pathlib.Path(states).glob("*.pt")}

def is_over(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

for attempt in range(int(kills) + 1):
    before = names()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        os._exit(train.main(line))
    if attempt == int(kills):
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if attempt % 2:
        time.sleep(rolls.uniform(0, 0.5))
    else:
        while not names() - before and not is_over(child):
            time.sleep(0.005)
        time.sleep(rolls.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_twenty_kills_cost_nothing(place: Path, tmp_path: Path) -> None:
    def line(output: Path) -> list[str]:
        return flags(place, output, "--max_iters", 60, "--save_every", 1, "--val_every", 20, "--log_every", 20)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for kills, name in ((0, "whole"), (20, "killed")):
        command = [sys.executable, "-c", KILLER, str(kills), tmp_path / name / "states", *line(tmp_path / name)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stderr.count("resumed after iteration") >= kills // 2, "it has learnt nothing between the kills"
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "killed" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
