"""--lr_consistency: the promise on written files, measured with Pillow, and that nothing changes without it."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model
from PIL import Image, ImageDraw

import inference.consistency as consistency
import inference.rechoose as codes_module
import test_tile as script
from inference.consistency import Projection, Residual, residual, target_region
from inference.generate import BatchSize
from inference.rechoose import Rechooser
from inference.render import render
from inference.restore import restore
from inference.settings import LRConsistency, RestoreSettings
from inference.windows import TiledPicture
from models.config import GenerationConfig
from models.varsr import VARSR
from pictures.rgb import TensorSource, upsample_region

PLAIN = RestoreSettings(GenerationConfig(cfg=0.0, top_k=1))
SIZE = (12, 14)  # of LR pictures
LARGE = (104, 101)  # more windows than fit into a wave


@pytest.fixture()
def run(weights: Path):
    """test_tile.py on the debug model."""
    def call(*flags: object) -> int:
        return script.main([str(flag) for flag in (*flags, "--model", weights, "--dtype", "fp32")])
    return call


def smooth(size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """A picture that some larger one is reduced to, in levels (h, w, 3): mild noise, enlarged and reduced again."""
    generator = np.random.default_rng(seed)
    noise = Image.fromarray(generator.integers(30, 226, (size[0] // 2 + 1, size[1] // 2 + 1, 3), dtype=np.uint8))
    return np.asarray(noise.resize(size[::-1], Image.BICUBIC))


def reduced(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Channels (H, W, c) by Pillow to (h, w, c), not rounded."""
    channels = [np.asarray(Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32)).resize(
        size[::-1], Image.BICUBIC)) for channel in values.transpose(2, 0, 1)]
    return np.stack(channels, axis=2)


def error(path: Path, lr: np.ndarray, top: int = 255) -> np.ndarray:
    """|D(file) - LR| in levels, by Pillow alone; lr: (h, w, c), in levels of 0 to `top`."""
    with Image.open(path) as picture:
        values = np.asarray(picture, dtype=np.float32)
    values = values.reshape(*values.shape[:2], -1)
    return np.abs(reduced(values, lr.shape[:2]) - lr)[:, :, :3] * 255 / top


def said(path: Path) -> dict[str, float]:
    """What a PNG file says of consistency."""
    with Image.open(path) as picture:
        words = json.loads(picture.info["VARSR"])["VARSR"].split()
    return {key: float(value) for key, _, value in (word.partition("=") for word in words) if key.startswith("lr_")}


@pytest.mark.parametrize("epsilon, flags", [(0.5, ()), (2, ("--scale", 2.5)), (1, ("--width", 37, "--height", 50)),
                                            (1, ("--color_fix", "adain")), (8, ("--color_fix", "none"))])
def test_the_written_file_keeps_the_promise(run, tmp_path: Path, epsilon: float, flags: tuple) -> None:
    lr = smooth()
    Image.fromarray(lr).save(tmp_path / "a.png")
    log = tmp_path / "log.jsonl"
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "free.png", *flags) == 0
    flags = (*flags, "--lr_consistency", epsilon, "--log", log)
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "b.png", *flags) == 0
    found = error(tmp_path / "b.png", lr.astype(float))
    assert found.max() <= epsilon < error(tmp_path / "free.png", lr.astype(float)).max()
    words, record = said(tmp_path / "b.png"), json.loads(log.read_text())
    assert words["lr_consistency"] == epsilon and words["lr_noise"] == 0 and not said(tmp_path / "free.png")
    assert words["lr_residual"] == pytest.approx(found.max(), abs=0.006)
    assert words["lr_residual_mean"] == pytest.approx(found.mean(), abs=0.0006)
    assert record["lr_residual"] == pytest.approx(found.max(), abs=1e-3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "16 bits"])
def test_other_kinds_keep_it_too(run, tmp_path: Path, mode: str) -> None:
    lr, top = smooth(), 255
    if mode == "16 bits":
        lr, top = np.asarray(Image.fromarray(lr).convert("L")).astype(np.uint16) * 257 + 100, 65_535
        Image.fromarray(lr).save(tmp_path / "a.png")
    else:
        picture = Image.fromarray(lr).convert(mode)
        if mode == "RGBA":
            picture.putalpha(Image.linear_gradient("L").resize(SIZE[::-1]).point(lambda level: max(level, 1)))
        picture.save(tmp_path / "a.png")
        lr = np.asarray(picture)
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--lr_consistency", 0.5) == 0
    found = error(tmp_path / "b.png", lr.reshape(*SIZE, -1).astype(float), top)
    assert found.max() <= 0.5 and said(tmp_path / "b.png")["lr_residual"] == pytest.approx(found.max(), abs=0.006)


def test_what_lies_on_white_is_not_measured(run, tmp_path: Path) -> None:
    picture = Image.fromarray(smooth())
    picture.putalpha(100)
    picture.save(tmp_path / "a.png")
    log = tmp_path / "log.jsonl"
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "b.jpg", "--lr_consistency", 1, "--log", log) == 0
    assert json.loads(log.read_text())["lr_residual"] is None


def test_noise_is_not_reproduced(run, tmp_path: Path) -> None:
    lr = (smooth() + 6 * np.random.default_rng(1).standard_normal((*SIZE, 3))).round().clip(0, 255).astype(np.uint8)
    Image.fromarray(lr).save(tmp_path / "a.png")
    flags = ("--lr_consistency", 1, "--lr_noise", 6)
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "b.png", *flags) == 0
    filtered = target_region(TensorSource(torch.tensor(lr).permute(2, 0, 1) / 255), 6.0, 0, 0, *SIZE)
    found, words = error(tmp_path / "b.png", filtered.permute(1, 2, 0).numpy() * 255.0), said(tmp_path / "b.png")
    assert found.max() <= 1 < error(tmp_path / "b.png", lr.astype(float)).max()
    assert words["lr_noise"] == 6 and words["lr_residual"] == pytest.approx(found.max(), abs=0.006)


def test_a_large_picture_keeps_it(run, tmp_path: Path) -> None:
    lr = smooth(LARGE)
    Image.fromarray(lr).save(tmp_path / "a.png")
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--lr_consistency", 1, "--cfg", 0) == 0
    found = error(tmp_path / "b.png", lr.astype(float))
    assert found.max() <= 1 and said(tmp_path / "b.png")["lr_residual"] == pytest.approx(found.max(), abs=0.006)


def test_what_cannot_be_kept_is_said(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Black and white pixels in turn: sharper than any picture is when reduced."""
    lr = np.repeat(np.indices(SIZE).sum(0)[:, :, None] % 2 * 255, 3, axis=2).astype(np.uint8)
    Image.fromarray(lr).save(tmp_path / "a.png")
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--lr_consistency", 1) == 0
    found = error(tmp_path / "b.png", lr.astype(float)).max()
    lines = [record.getMessage() for record in caplog.records if "b.png" in record.getMessage()]
    assert found > 10 and len(lines) == 1 and f"{found:.2f}" in lines[0]
    assert said(tmp_path / "b.png")["lr_residual"] == pytest.approx(found, abs=0.006)


def test_without_the_flag_nothing_changes(model: VARSR, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = torch.rand(3, *SIZE)
    monkeypatch.setattr(consistency.Projection, "__call__", None)
    assert RestoreSettings(PLAIN.generation).lr_consistency is None
    restore(model, lr, PLAIN)


def test_a_smaller_epsilon_brings_it_nearer(model: VARSR) -> None:
    lr = torch.tensor(smooth()).permute(2, 0, 1) / 255
    found = []
    for epsilon in (None, 16, 4, 1, 0.25):
        promise = None if epsilon is None else LRConsistency(epsilon)
        result = restore(model, lr, dataclasses.replace(PLAIN, lr_consistency=promise))
        found.append(residual(TensorSource(result), TensorSource(lr)))
        assert epsilon is None or found[-1].largest <= epsilon
    assert found == sorted(found, key=lambda each: each.mean, reverse=True)
    assert found == sorted(found, key=lambda each: each.largest, reverse=True)


def rough(size: tuple[int, int], lr_size: tuple[int, int], config) -> tuple[TiledPicture, torch.Tensor]:
    """A picture, and pixels that are far from it."""
    generator = torch.Generator().manual_seed(0)
    lr = TensorSource(torch.rand(3, *lr_size, generator=generator))
    pixels = upsample_region(lr, size, 0, 0, *size) + 0.3 * torch.randn(3, *size, generator=generator)
    return TiledPicture(lr, size, config), pixels


@pytest.mark.parametrize("size, lr_size", [((70, 90), (20, 24)), ((64, 64), (64, 64)), ((96, 100), (6, 7))])
def test_rows_do_not_depend_on_how_bands_are_cut(model: VARSR, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int],
                                                 lr_size: tuple[int, int]) -> None:
    monkeypatch.setattr(consistency, "STEPS", 3)  # a reach that is shorter than the picture
    picture, pixels = rough(size, lr_size, model.config)
    monkeypatch.setattr(consistency, "BLOCK", 5)
    whole = Projection(picture, LRConsistency(1.0), torch.device("cpu"))(pixels, 0)
    monkeypatch.setattr(consistency, "PART", 16)
    project = Projection(picture, LRConsistency(1.0), torch.device("cpu"))
    for top, bottom in ((0, 1), (13, 40), (0, size[0]), (size[0] - 1, size[0])):
        first, last = max(top - project.reach, 0), min(bottom + project.reach, size[0])
        part = project(pixels[:, first:last], first)[:, top - first:bottom - first]
        torch.testing.assert_close(part, whole[:, top:bottom], atol=1e-5, rtol=0)


def test_any_rows_of_a_rendered_picture(model: VARSR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "STEPS", 2)
    picture, _ = rough((70, 90), (17, 22), model.config)
    side, generator = model.config.vqvae.side, torch.Generator().manual_seed(0)
    for window in picture.grid:
        picture.finished[window.index] = torch.randn(model.config.vqvae.latent_channels, side, side,
                                                     generator=generator)

    def rows(top: int, bottom: int) -> torch.Tensor:
        bands = render(model, picture, picture.finished, "wavelet", BatchSize(3), top, bottom,
                       consistency=LRConsistency(1.0))
        return torch.cat([band for _, band in bands], dim=1)
    whole = rows(0, 70)
    for top, bottom in ((0, 1), (13, 50), (69, 70)):
        torch.testing.assert_close(rows(top, bottom), whole[:, top:bottom], atol=1e-5, rtol=0)


def hard(name: str, size: int = 40) -> torch.Tensor:
    """HR pictures (3, 4 size, 4 size) whose reductions are hard to reach."""
    if name == "noise":
        return (torch.rand(3, 4 * size, 4 * size, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    if name == "checks":
        return (torch.arange(4 * size)[:, None] // 8 + torch.arange(4 * size) // 8).remainder(2).float().repeat(3, 1, 1)
    picture = Image.new("L", (4 * size, 4 * size), 255)
    for top in range(0, 4 * size, 12):
        ImageDraw.Draw(picture).text((3, top), "The quick brown fox jumps 0123456789", fill=0)
    return (torch.from_numpy(np.array(picture)) / 255).repeat(3, 1, 1)


@pytest.mark.parametrize("name, epsilon", [("noise", 0.5), ("checks", 2.0), ("text", 1.0)])
def test_hard_pictures_are_reached(model: VARSR, name: str, epsilon: float) -> None:
    hr = hard(name)
    channels = hr.permute(1, 2, 0).numpy() * 255
    lr = TensorSource(torch.from_numpy(reduced(channels, (40, 40)).round().clip(0, 255)).permute(2, 0, 1) / 255)
    picture = TiledPicture(lr, (160, 160), model.config)
    start = upsample_region(lr, (160, 160), 0, 0, 160, 160)
    result = Projection(picture, LRConsistency(epsilon), torch.device("cpu"))(start, 0)
    written = TensorSource((result * 255).round() / 255)
    assert residual(written, lr).largest <= epsilon < residual(TensorSource(start), lr).largest


def test_noise_is_filtered_from_flat_places_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((3, 40, 40), 0.5)
    flat[:, :, 20:] = 0.9
    noisy = TensorSource((flat + 5 / 255 * torch.randn(3, 40, 40, generator=generator)).clamp(0, 1))
    filtered = target_region(noisy, 5.0, 0, 0, 40, 40)
    assert (filtered - flat)[:, :, 3:17].std() < 0.5 * 5 / 255
    assert (filtered[:, :, 19] - filtered[:, :, 20]).abs().mean() > 0.38  # the edge stays
    for top, left, height, width in ((0, 0, 1, 1), (7, 3, 9, 30), (39, 20, 1, 20)):
        torch.testing.assert_close(target_region(noisy, 5.0, top, left, height, width),
                                   filtered[:, top:top + height, left:left + width], atol=1e-6, rtol=0)
    assert target_region(noisy, 0.0, 0, 0, 40, 40).equal(noisy.picture)


def test_the_promise_is_about_the_filtered_picture(model: VARSR) -> None:
    lr = (torch.tensor(smooth()).permute(2, 0, 1) / 255 + 0.02 * torch.randn(3, *SIZE)).clamp(0, 1)
    result = TensorSource(restore(model, lr, dataclasses.replace(PLAIN, lr_consistency=LRConsistency(0.5, 6.0))))
    assert residual(result, TensorSource(lr), 6.0).largest <= 0.5 < residual(result, TensorSource(lr)).largest


def test_measuring_goes_over_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    lr, hr = torch.rand(3, 30, 9), torch.rand(3, 75, 20)
    monkeypatch.setattr(consistency, "MEASURED_ROWS", 7)
    difference = np.abs(reduced(hr.permute(1, 2, 0).numpy(), (30, 9)) - lr.permute(1, 2, 0).numpy()) * 255
    found = residual(TensorSource(hr), TensorSource(lr))
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(Residual(difference.max(),
                                                                                    difference.mean())), rel=1e-4)


@pytest.mark.parametrize("flags, named", [
    (("--lr_consistency", -1), "--lr_consistency"), (("--lr_consistency", 256), "--lr_consistency"),
    (("--lr_consistency", "nan"), "--lr_consistency"), (("--lr_consistency", 1, "--lr_noise", -1), "--lr_noise"),
    (("--lr_noise", 3), "--lr_consistency"), (("--lr_consistency", 1, "--scale", 0.5), "--scale")])
def test_mistakes_are_one_line(run, tmp_path: Path, capsys: pytest.CaptureFixture, flags: tuple, named: str) -> None:
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    try:
        code = run("-i", tmp_path / "a.png", *flags)
    except SystemExit as stop:
        code = stop.code
    line = capsys.readouterr().err.strip()
    assert code == 1 and named in line and "\n" not in line


def test_promises_that_cannot_be_made(model: VARSR) -> None:
    with pytest.raises(ValueError, match="0 to 255"):
        LRConsistency(300.0)
    with pytest.raises(ValueError, match="smaller than its LR picture"):
        restore(model, torch.rand(3, *SIZE), dataclasses.replace(PLAIN, lr_consistency=LRConsistency(1.0)), size=(6, 7))


class Picky(Rechooser):
    """One that remembers what it was asked."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.asked: list[tuple] = []

    def __call__(self, scale: int, logits: torch.Tensor, codes: torch.Tensor, f_hat: torch.Tensor) -> torch.Tensor:
        chosen = super().__call__(scale, logits, codes, f_hat)
        self.asked.append((scale, logits, codes, f_hat, chosen))
        return chosen


def rechooser(model: VARSR, weight: float, windows: int = 2) -> tuple[Picky, torch.Tensor]:
    """One for the first windows of a picture, and their guides."""
    picture = TiledPicture(TensorSource(torch.tensor(smooth((20, 20))).permute(2, 0, 1) / 255), (80, 80), model.config)
    work = [(picture, window) for window in list(picture.grid)[:windows]]
    guides = torch.stack([picture.window_guide(window) for _, window in work])
    return Picky(model, work, guides, LRConsistency(1.0), weight), guides


def test_codes_are_chosen_that_fit_better(model: VARSR) -> None:
    rechoose, guides = rechooser(model, 1e-5)
    model.generate_latent(guides, options=PLAIN.generation, seed=[0, 1], rechoose=rechoose)
    scales = len(model.config.vqvae.scales)
    assert [scale for scale, *_ in rechoose.asked] == [scales - 2, scales - 1]
    lookup = model.vqvae.quantizer.lookup
    fewer = 0
    for scale, logits, codes, f_hat, chosen in rechoose.asked:
        likely = logits.topk(codes_module.CANDIDATES).indices
        assert (likely == chosen[..., None]).any(-1).all()
        for i in range(2):
            before, after = (rechoose.energy(i, scale, lookup(each[i:i + 1], scale), f_hat[i])
                             for each in (codes, chosen))
            assert after < before or chosen[i].equal(codes[i])
            fewer += bool(after < before)
    assert fewer >= 2


def test_the_gradient_is_that_of_the_energy(model: VARSR) -> None:
    rechoose, _ = rechooser(model, 1.0, 1)
    scale = len(model.config.vqvae.scales) - 2
    side, channels = model.config.vqvae.scales[scale], model.config.vqvae.latent_channels
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(model.config.vqvae.vocab_size, (side * side,), generator=generator)
    f_hat = torch.randn(channels, model.config.vqvae.side, model.config.vqvae.side, generator=generator)
    step = 1e-2 * torch.randn(1, channels, side, side, generator=generator)
    embedding = model.vqvae.quantizer.lookup(codes[None], scale)
    ahead, behind = (rechoose.energy(0, scale, embedding + sign * step, f_hat) for sign in (1, -1))
    predicted = (rechoose.gradient(0, scale, codes, f_hat)[1] * step[0].flatten(1).T).sum()
    torch.testing.assert_close((ahead - behind) / 2, predicted, rtol=2e-2, atol=0)


def test_codes_that_fit_worse_together_are_dropped(model: VARSR) -> None:
    """A large weight changes so many codes that the estimate of first order is wrong about their sum."""
    rechoose, guides = rechooser(model, 10.0)
    model.generate_latent(guides, options=PLAIN.generation, seed=[0, 1], rechoose=rechoose)
    dropped = 0
    for scale, logits, codes, f_hat, chosen in rechoose.asked:
        for i in range(2):
            rash = rechoose._likely(logits[i], codes[i], rechoose.gradient(i, scale, codes[i], f_hat[i])[1])
            before, after = (rechoose.energy(i, scale, model.vqvae.quantizer.lookup(each[None], scale), f_hat[i])
                             for each in (codes[i], rash))
            dropped += bool(after >= before)
            assert chosen[i].equal(codes[i] if after >= before else rash)
    assert dropped


def test_weight_0_leaves_the_codes(model: VARSR) -> None:
    options = dataclasses.replace(PLAIN.generation, top_k=8)
    rechoose, guides = rechooser(model, 0.0)
    plain, same = (model.generate_latent(guides, options=options, seed=[0, 1], rechoose=each)
                   for each in (None, rechoose))
    assert len(rechoose.asked) == 2 and plain.equal(same)


def test_a_windows_codes_do_not_depend_on_the_batch(model: VARSR) -> None:
    lr = torch.tensor(smooth((14, 19))).permute(2, 0, 1) / 255
    promise = dataclasses.replace(PLAIN, lr_consistency=LRConsistency(1.0, rechoose=True))
    assert not restore(model, lr, promise).equal(restore(model, lr, dataclasses.replace(
        PLAIN, lr_consistency=LRConsistency(1.0))))
    one, many = (restore(model, lr, dataclasses.replace(promise, batch_size=n)) for n in (1, 5))
    torch.testing.assert_close(one, many, atol=1e-3, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_caller_may_be_in_inference_mode(weights: Path, noise: float) -> None:
    """And may have loaded the model in it."""
    promise = dataclasses.replace(PLAIN, lr_consistency=LRConsistency(1.0, noise, rechoose=True))
    lr = torch.tensor(smooth((10, 8))).permute(2, 0, 1) / 255
    expected = restore(VARSR.from_pretrained(weights), lr, promise)
    with torch.inference_mode():
        model = VARSR.from_pretrained(weights)
        within = restore(model, lr.clone(), promise)
    assert within.equal(expected) and restore(model, lr, promise).equal(expected)


def test_recorded_generations_are_not_rechosen() -> None:
    """A graph holds no gradients: what is rechosen goes past it."""
    model = small_model()

    class Refusing:
        def generate(self, *_: object) -> torch.Tensor:
            raise AssertionError("recorded")
    model.graphs = Refusing()
    restore(model, torch.rand(3, 8, 8), dataclasses.replace(PLAIN, lr_consistency=LRConsistency(1.0, rechoose=True)))
    with pytest.raises(AssertionError, match="recorded"):
        restore(model, torch.rand(3, 8, 8), PLAIN)
