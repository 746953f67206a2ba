"""Generation and restoration on a GPU: independent of the batch, as on the CPU, in every type of number."""
from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import small_model
from embedded import MODEL, SAMPLE, decibels, embedded_model, levels_apart, sample_lr
from PIL import Image

import test_varsr as script
from inference.generate import BatchSize, generate_windows
from inference.render import render
from inference.settings import RestoreSettings, prepare
from inference.windows import TiledPicture
from models.config import GenerationConfig
from models.fastvar import SHARED, FastVARConfig
from models.speed.packed import FP8, INT8, Float8Linear, Int8Linear, replace_linears, require_gpu
from models.varsr import VARSR, ScaleStep
from pictures.rgb import TensorSource
from utils.device import choose_dtype
from utils.flags import DTYPES

pytestmark = pytest.mark.gpu
GREEDY = GenerationConfig(cfg=2.0, cfg_from_scale=1)
SAMPLED = GenerationConfig(cfg=1.0, top_k=8, top_p=0.9)
PRUNED = FastVARConfig({4: 0.5}, later_layer_start=0, min_keep=1, mode=SHARED)
LEVEL = 1 / 255
EIGHT_BIT = {INT8: Int8Linear, FP8: Float8Linear}


@pytest.fixture()
def four(model: VARSR) -> torch.Tensor:
    """LR pictures at output size."""
    size = model.config.image_size
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("options", "fastvar"), [(GREEDY, None), (SAMPLED, None), (GREEDY, PRUNED)])
def test_one_picture_is_what_it_is_among_four(options: GenerationConfig, fastvar: FastVARConfig | None,
                                              four: torch.Tensor, device: torch.device, full_precision: None) -> None:
    """With the same seed: equal codes, and no pixel more than a level apart."""
    model = small_model().to(device)
    together, alone = [], []
    all_four = model.generate(four, options=options, seed=[3, 4, 5, 6], fastvar=fastvar, on_scale=together.append)
    one = model.generate(four[1:2], options=options, seed=4, fastvar=fastvar, on_scale=alone.append)
    for first, second in zip(together, alone, strict=True):
        assert torch.equal(first.codes[1:2], second.codes)
    assert (all_four[1:2] - one).abs().max() <= LEVEL and not torch.equal(all_four[0], all_four[1])


def restored_in_windows(model: VARSR, lr: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A picture and the codes of its windows, by scale."""
    settings, batch = RestoreSettings(model.config.generation), BatchSize(4)
    picture = TiledPicture(TensorSource(lr), tuple(4 * side for side in lr.shape[1:]), model.config)
    codes: list[torch.Tensor] = []

    def keep(_: object, step: ScaleStep) -> None:
        codes.append(step.codes.cpu().flatten())
    generate_windows(model, [(picture, window) for window in picture.grid], settings, batch, on_scale=keep)
    assert len(picture.grid) == 9
    bands = render(model, picture, picture.finished, settings.color_fix, batch)
    return torch.cat([rows for _, rows in bands], dim=1), codes


def test_a_picture_of_windows_is_the_cpus(device: torch.device, full_precision: None) -> None:
    """No pixel more than a level from the CPU's, but for a few where a code fell to the other side.

    The arg-max decides: here the best of the logits, up to 28, leads by 6e-4 or more (measured), and two ways of
    computing them on a CPU are 1e-5 apart, so that no code should.
    """
    lr = sample_lr("fig", 0, 0, 64, 64)
    expected, expected_codes = restored_in_windows(embedded_model(torch.device("cpu")), lr)
    found, codes = restored_in_windows(embedded_model(device), lr)
    differing = (torch.cat(codes) != torch.cat(expected_codes)).float().mean()
    apart = levels_apart(found, expected)
    print(f"{differing:.2%} of the codes differ, {(apart > 0).float().mean():.2%} of the levels")
    assert differing < 0.005 and (apart > 1).float().mean() < 0.005


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_layers_of_8_bits_are_the_cpus(kind: str, device: torch.device) -> None:
    """Weights in the same codes, but for ties that a scale's last bit decides, and nearly the same products: tensor
    cores keep some 13 bits of the sums of fp8."""
    if device.type == "cuda":
        require_gpu(device, kind)
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(96, 64, generator=generator) / 8, torch.randn(96, generator=generator)
    x = 3 * torch.randn(2, 50, 64, generator=generator)
    layer = EIGHT_BIT[kind]
    here, there = layer(weight, bias), layer(weight.to(device), bias.to(device))
    assert (there.codes.cpu().float() == here.codes.float()).float().mean() > 0.999
    difference = (there(x.to(device)).cpu() - here(x)).norm() / here(x).norm()
    assert difference < (1e-3 if kind == INT8 else 3e-3)


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_a_picture_in_8_bits_is_near_that_in_16(kind: str, device: torch.device,
                                                record_property: Callable[[str, object], None]) -> None:
    """On a CPU 48 dB or more with int8."""
    if device.type == "cuda":
        require_gpu(device, kind)
    elif kind == FP8:
        pytest.skip("NOTICE: needs a GPU, CPUs take minutes to imitate fp8")
    lr = sample_lr("cat", 40, 20, 32, 32)
    plain, eight = (embedded_model(device, torch.bfloat16).for_inference() for _ in range(2))
    replace_linears(eight, EIGHT_BIT[kind])
    settings = RestoreSettings(plain.config.generation, batch_size=1)
    pictures = []
    for model in (plain, eight):
        picture = TiledPicture(TensorSource(lr), (128, 128), model.config)
        generate_windows(model, [(picture, window) for window in picture.grid], settings, BatchSize(1))
        bands = render(model, picture, picture.finished, settings.color_fix, BatchSize(1))
        pictures.append(torch.cat([rows for _, rows in bands], dim=1))
    found = decibels(*pictures)
    record_property("dB", found)
    print(kind, f"{found:.1f} dB")
    assert (40 if kind == INT8 else 33) < found < 90  # near, but not the same


def test_packed_models_are_those_of_the_device(device: torch.device) -> None:
    """`prepare` puts the 8-bit layers of GPUs into a model that is on one."""
    model = prepare(embedded_model(device, torch.bfloat16), INT8)
    assert model.is_packed
    assert (type(model.transformer.blocks[0].attention.out) is Int8Linear) == (device.type == "cuda")


def test_auto_is_bfloat16(cuda: torch.device) -> None:
    """Where the GPU computes in it, as all do from Ampere on."""
    modern = torch.cuda.get_device_capability(cuda) >= (8, 0)
    assert choose_dtype("auto", cuda) == (torch.bfloat16 if modern else torch.float16)


@pytest.fixture()
def writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow writes results where pyvips is missing, as on machines that are lent for their GPU."""
    try:
        import pyvips  # noqa: F401
    except ImportError:
        monkeypatch.setattr("pictures.result_file.encode",
                            lambda store, path, *_: Image.fromarray(store.array()).save(path, format="PNG"))


@pytest.mark.parametrize("name", ["auto", *DTYPES, *EIGHT_BIT])
def test_the_script_restores_with_every_dtype(name: str, device: torch.device, tmp_path: Path, writer: None,
                                              capsys: pytest.CaptureFixture) -> None:
    """It says what it computes in, and the picture is as close to the original as on a CPU, 26.2 dB."""
    if name == FP8 and device.type == "cpu":
        pytest.skip("NOTICE: needs a GPU, the script refuses fp8 on CPUs")
    if name in EIGHT_BIT and device.type == "cuda":
        require_gpu(device, name)
    for folder, factor in (("LR", 1), ("HR", 4)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        with Image.open(SAMPLE / folder / "cat.png") as whole:
            part = whole.crop([factor * side for side in (40, 20, 80, 52)])
        part.save(tmp_path / "set" / folder / "cat.png", icc_profile=None)
    flags = ("-i", tmp_path / "set" / "LR", "-o", tmp_path / "out", "--model", MODEL, "--device", device, "--dtype",
             name)
    assert script.main([str(flag) for flag in flags]) == 0
    chosen = str(choose_dtype(name, device)).removeprefix("torch.")
    precision = name if name in EIGHT_BIT else next(short for short, long in DTYPES.items() if long == chosen)
    assert f"{device}, {precision};" in capsys.readouterr().out
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        quality = float(next(csv.DictReader(file))["psnr_y"])
    print(name, f"{quality:.2f} dB to the original")
    assert quality > 25.5
