"""Maps of expected errors: the same however they are computed, beside a result that knows nothing of them."""
from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import inference.large
import inference.products
import inference.runner
import pictures.result_file
import test_tile as script
from inference.evidence import first_varied, sample_seed, token_evidence
from inference.generate import BatchSize, generate_windows
from inference.products import keep_evidence, rendered, rows_with_errors
from inference.restore import generated, restore, restore_with_errors
from inference.settings import LRConsistency, RestoreSettings, UncertaintySettings
from inference.uncertainty import ErrorMap, input_names, with_spread
from inference.windows import TiledPicture
from models.config import PRESETS, GenerationConfig
from models.error_model import FOLDER_FILE, Calibration, ErrorHead, Fitted
from models.generation import ScaleStep
from models.varsr import VARSR
from models.weights.load import identity
from pictures.picture import read_making
from pictures.rgb import BT601, read_image
from tests.ranks import start_ranks

SETTINGS = RestoreSettings(GenerationConfig(cfg=1.0, top_k=20, top_p=1.0))
NAMES = input_names(PRESETS["varsr-debug"])
SIZES = [(80, 88), (61, 75), (33, 130), (20, 11)]  # of results; windows have 32 pixels


def random_calibration(model: str = "m (sha256 0)", limit: float = 1e3) -> Calibration:
    """Of random heads that everything matters to; `limit`: how far off a picture may be."""
    torch.manual_seed(1)
    heads = {}
    for name, inputs in NAMES.items():
        head = heads[name] = ErrorHead(len(inputs)).eval().requires_grad_(False)
        head.mean.normal_(0.5, 0.2)
        head.band.fill_(2.25)
        head.whitening.copy_(torch.eye(len(inputs)))
        head.limit.fill_(limit)
    return Calibration(Fitted(model, NAMES["several"], 40, "photos"), heads)


def settings(samples: int = 0, calibrated: bool = True, **changes: object) -> RestoreSettings:
    uncertainty = UncertaintySettings(samples, random_calibration() if calibrated else None)
    return dataclasses.replace(SETTINGS, uncertainty=uncertainty, **changes)


def lr_picture(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(3, -(-size[0] // 4), -(-size[1] // 4), generator=torch.Generator().manual_seed(seed))


def luma(picture: Tensor) -> Tensor:
    return (picture * torch.tensor(BT601).view(3, 1, 1)).sum(0) * 255


# ---- what the tokens say ----

@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_evidence_is_that_of_the_distribution(scale: float) -> None:
    logits = scale * torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 0.0  # nothing known
    logits[0, 1] = torch.eye(50)[7] * 2000  # no doubt
    maps = token_evidence(ScaleStep(1, 3, logits, logits.argmax(-1), torch.empty(0)), 3)
    share = logits.double().softmax(-1)
    entropy = -(share * share.clamp(min=1e-300).log()).sum(-1) / np.log(50)
    two = share.topk(2).values
    expected = torch.stack([entropy, two[..., 0] - two[..., 1]], dim=1).unflatten(2, (3, 3)).float()
    torch.testing.assert_close(maps, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(maps[0, :, 0, :2], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), atol=1e-6, rtol=0)


def test_evidence_lies_where_its_token_acts() -> None:
    logits = torch.zeros(1, 4, 10)
    logits[0, 1, 3] = 100.0  # the upper right one is sure
    maps = token_evidence(ScaleStep(1, 2, logits, logits.argmax(-1), torch.empty(0)), 8)
    assert maps.shape == (1, 2, 8, 8)
    assert float(maps[0, 1, 1, 6]) > 0.99 and float(maps[0, 1, 6:, :2].max()) < 0.01
    assert float(maps[0, 0, 1, 6]) < 0.01 and float(maps[0, 0, 6:, :2].min()) > 0.99


def test_further_results_vary() -> None:
    greedy, sampled = GenerationConfig(top_k=1, cfg=2.0), SETTINGS.generation
    assert sampled.varied() == sampled and greedy.varied().top_k > 1 and greedy.varied().cfg == 2
    assert first_varied(PRESETS["varsr-debug"]) == 1 and first_varied(PRESETS["varsr-d24"]) == 6
    assert len({sample_seed(seed, sample) for seed in range(20) for sample in range(64)}) == 20 * 64


# ---- rows ----

@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("size", SIZES)
def test_rows_do_not_depend_on_how_they_are_cut(model: VARSR, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int],
                                                samples: int) -> None:
    wanted = settings(samples)
    picture, batch = generated(model, lr_picture(size), wanted, size=size)
    bands = rendered(model, picture, wanted, batch, picture.finished)
    if samples:
        bands = with_spread(bands, [rendered(model, picture, wanted, batch, each) for each in picture.samples])
    rows = torch.cat([band for _, band in bands], dim=1)
    whole = ErrorMap(picture, wanted.uncertainty)(rows, 0)[0]  # in one piece
    assert whole.shape == size and float(whole.std()) > 0
    for part in (1, 7, 512):
        monkeypatch.setattr(inference.products, "PART", part)
        for top, bottom in ((0, size[0]), (0, 9), (7, 16), (size[0] - 3, size[0]), (size[0] // 2 + 1, size[0])):
            top, written = min(top, size[0] - 1), {}
            bottom = min(max(bottom, top + 1), size[0])
            found = list(rows_with_errors(model, picture, wanted, batch, ErrorMap(picture, wanted.uncertainty),
                                          written.__setitem__, top, bottom))
            assert [first for first, _ in found] == sorted(first for first, _ in found) and found[0][0] == top
            torch.testing.assert_close(torch.cat([errors for _, errors in found], dim=1)[0], whole[top:bottom],
                                       atol=1e-3, rtol=1e-3)
            seen = torch.cat([written[first] for first in sorted(written)], dim=1)
            torch.testing.assert_close(seen, rows[:3, top:bottom], atol=1e-5, rtol=0)


def test_every_input_is_what_its_name_says(model: VARSR) -> None:
    wanted, size = settings(2), (32, 32)
    picture, _ = generated(model, lr_picture(size), wanted, size=size)
    rows = torch.rand(4, *size, generator=torch.Generator().manual_seed(2))
    rows[3] *= 9
    found = dict(zip(NAMES["several"], ErrorMap(picture, wanted.uncertainty).inputs_of(rows, 0), strict=True))
    tokens = torch.nn.functional.interpolate(picture.evidence[0][None], scale_factor=4, mode="bilinear")[0]
    for i, name in enumerate(NAMES["several"][:6]):  # of one window: as they are, at their place
        torch.testing.assert_close(found[name], tokens[i])
    sr, lr = luma(rows[:3]).double().numpy(), luma(picture.guide(0, 0, *size)).double().numpy()
    y, x = 6, 9  # on the coarser grid

    def around(plane: np.ndarray, radius: int) -> np.ndarray:
        """The pixels of the cells around; radius 7 reaches over the edge and is left to the edge's repetition."""
        return plane[2 * (y - radius):2 * (y + radius + 1), 2 * (x - radius):2 * (x + radius + 1)]

    def log(level: float) -> float:
        return float(np.log(level + 0.5))
    for radius in (1, 3):
        expected = {"contrast of LR": around(lr, radius).std(), "contrast of SR": around(sr, radius).std(),
                    "change": np.abs(around(sr - lr, radius)).mean(), "spread": around(rows[3].numpy(), radius).mean()}
        for name, level in expected.items():
            assert abs(float(found[f"{name} within {radius}"][y, x]) - log(level)) < 2e-3, (name, radius)


def test_parts_of_a_picture_are_judged_together(model: VARSR) -> None:
    wanted = settings()
    picture, _ = generated(model, lr_picture((32, 32)), wanted, size=(32, 32))
    rows = torch.rand(3, 32, 32)
    whole, upper, lower = (ErrorMap(picture, wanted.uncertainty) for _ in range(3))
    assert whole.strangeness is None
    whole(rows, 0)
    upper(rows[:, :16], 0), lower(rows[:, 16:], 16)
    lower.merge([each.take() for each in (upper, lower)])
    assert lower.pixels == whole.pixels == 256 and abs(lower.strangeness / whole.strangeness - 1) < 0.05
    assert lower.strangeness != upper.strangeness


def test_rows_come_before_their_errors(model: VARSR) -> None:
    """A large picture's rows count as done once their errors are written."""
    wanted, until = settings(), 0

    def write(top: int, rows: Tensor) -> None:
        nonlocal until
        assert top == until
        until += rows.shape[1]
    picture, batch = generated(model, lr_picture((120, 40)), wanted, size=(120, 40))
    for top, errors in rows_with_errors(model, picture, wanted, batch, ErrorMap(picture, wanted.uncertainty), write):
        assert top + errors.shape[1] <= until


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("changes", [{}, {"color_fix": "adain"}, {"lr_consistency": LRConsistency(2.0)}], ids=str)
def test_the_result_is_the_one_without(model: VARSR, calibrated: bool, changes: dict) -> None:
    lr = lr_picture((61, 75))
    expected = restore(model, lr, dataclasses.replace(SETTINGS, **changes), size=(61, 75))
    for samples in (0, 1):
        restored, errors, error = restore_with_errors(model, lr, settings(samples, calibrated, **changes),
                                                      size=(61, 75))
        assert torch.equal(restored, expected) and errors.shape == (61, 75)
        assert float(errors.min()) >= 0 and bool(torch.isfinite(errors).all())
        assert ("uncalibrated" in error.description) != calibrated


def test_the_map_does_not_depend_on_the_batch(model: VARSR) -> None:
    lr = lr_picture((80, 88))
    one, many = (restore_with_errors(model, lr, settings(2, batch_size=size))[1] for size in (1, 16))
    torch.testing.assert_close(one, many, atol=2e-2, rtol=2e-2)


def test_the_spread_is_that_of_separate_pictures(model: VARSR) -> None:
    """Two further results by hand: rendered for themselves, compared with the result."""
    wanted, size = settings(2), (61, 75)
    picture, batch = generated(model, lr_picture(size), wanted, size=size)
    whole = [torch.cat([rows for _, rows in rendered(model, picture, wanted, batch, store)], dim=1)
             for store in (picture.finished, *picture.samples)]
    expected = torch.stack([(luma(other) - luma(whole[0])).square() for other in whole[1:]]).mean(0).sqrt()
    bands = with_spread(rendered(model, picture, wanted, batch, picture.finished),
                        [rendered(model, picture, wanted, batch, store) for store in picture.samples])
    rows = torch.cat([band for _, band in bands], dim=1)
    assert torch.equal(rows[:3], whole[0]) and float(expected.mean()) > 1
    torch.testing.assert_close(rows[3], expected)
    assert not torch.equal(whole[1], whole[2])
    fewer, _ = generated(model, lr_picture(size), settings(1), size=size)  # the first one is the same alone
    assert all(torch.allclose(fewer.samples[0][i], picture.samples[0][i], atol=1e-4) for i in range(len(picture.grid)))


def test_every_seed_has_further_results_of_its_own(model: VARSR, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    original = VARSR.generate_latent

    def watched(self: VARSR, lr: Tensor, **options: object) -> Tensor:
        seeds.extend(options["branches"].seeds)
        return original(self, lr, **options)
    monkeypatch.setattr(VARSR, "generate_latent", watched)
    for seed in (0, 1):
        generated(model, lr_picture((40, 40)), settings(2, seed=seed), size=(40, 40))
    assert len(seeds) == len(set(seeds)) == 2 * 2 * 4


def test_pictures_that_share_a_batch_keep_their_own(model: VARSR) -> None:
    wanted, made = settings(2), []
    for seed in (1, 2):
        lr = lr_picture((40, 52), seed)
        alone, _ = generated(model, lr, dataclasses.replace(wanted, batch_size=1), size=(40, 52))
        together = TiledPicture(alone.source, (40, 52), model.config)
        keep_evidence(together, wanted, lambda name, channels: {})
        made.append((alone, together))
    work = [(together, window) for _, together in made for window in together.grid]
    generate_windows(model, work, wanted, BatchSize(3))
    for alone, together in made:
        for i in range(len(alone.grid)):
            torch.testing.assert_close(together.evidence[i], alone.evidence[i], atol=1e-4, rtol=0)
            for some, one in zip(together.samples, alone.samples, strict=True):
                torch.testing.assert_close(some[i], one[i], atol=1e-4, rtol=1e-4)
            assert together.evidence[i].shape == (2 * len(model.config.vqvae.scales), 4, 4)


# ---- the script ----

@pytest.fixture()
def run(weights: Path) -> Callable[..., int]:
    """The script on the debug model, with flags of any type."""
    def call(*flags: object) -> int:
        return script.main([str(flag) for flag in (*flags, "--model", weights, "--dtype", "fp32", "--top_k", 20)])
    return call


@pytest.fixture()
def calibrated(weights: Path) -> Iterator[Callable[..., Calibration]]:
    """Puts a calibration beside the model."""
    def put(**options: float) -> Calibration:
        calibration = random_calibration(identity(weights), **options)
        calibration.save(weights / FOLDER_FILE)
        return calibration
    yield put
    (weights / FOLDER_FILE).unlink(missing_ok=True)


def noise(path: Path, size: tuple[int, int] = (9, 8), seed: int = 0, mode: str = "RGB") -> Path:
    """Write a random picture of (width, height)."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(path)
    return path


def values(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def said(path: Path) -> str:
    """What a map's file says of its numbers."""
    with Image.open(path) as picture:
        return json.loads(picture.info["VARSR"])["uncertainty"]


@pytest.mark.parametrize("samples", [0, 2])
def test_the_file_holds_the_map(run, calibrated, model: VARSR, tmp_path: Path, samples: int,
                                caplog: pytest.LogCaptureFixture) -> None:
    calibration, source = calibrated(), noise(tmp_path / "a.png", (13, 11))
    flags = ("-i", source, "--scale", 3.5, "--seed", 4)
    more = ("--uncertainty_samples", samples) if samples else ()
    assert run(*flags, "-o", tmp_path / "plain.png") == 0
    assert run(*flags, "-o", tmp_path / "b.png", "--uncertainty", *more) == 0
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "b_uncertainty.png", "plain.png"]
    assert (values(tmp_path / "b.png") == values(tmp_path / "plain.png")).all()
    with Image.open(tmp_path / "b_uncertainty.png") as picture:
        assert picture.mode == "I;16" and picture.size == Image.open(tmp_path / "b.png").size
    wanted = RestoreSettings(dataclasses.replace(model.config.generation, top_k=20, scale=3.5), seed=4,
                             uncertainty=UncertaintySettings(samples, calibration))
    _, errors, _ = restore_with_errors(model, read_image(source), wanted)
    assert np.abs(values(tmp_path / "b_uncertainty.png") / 256 - errors.numpy()).max() < 0.02
    text = said(tmp_path / "b_uncertainty.png")
    assert text.startswith("value / 256 = expected absolute error") and "90% of pixels are within 2.25 times" in text
    assert "40 crops of photos" in text and "uncalibrated" not in text and "unlike" not in text
    assert read_making(tmp_path / "b_uncertainty.png") and not caplog.records


def test_without_a_calibration_it_says_so(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(tmp_path / "in" / "a.png")
    noise(tmp_path / "in" / "b.png", seed=1)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--uncertainty") == 0
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "uncalibrated" in lines[0] and "\n" not in lines[0]
    assert "a guess" in said(tmp_path / "out" / "a_uncertainty.png")


def test_a_picture_unlike_those_of_the_calibration_is_told(run, calibrated, tmp_path: Path,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    calibrated(limit=1e-3)
    assert run("-i", noise(tmp_path / "a.png"), "-o", tmp_path / "out", "--uncertainty") == 0
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "a_uncertainty.png" in lines[0] and "unlike" in lines[0]
    assert "unlike the pictures of the calibration" in said(tmp_path / "out" / "a_uncertainty.png")


def test_another_models_calibration_is_refused(run, weights: Path, calibrated, tmp_path: Path,
                                               capsys: pytest.CaptureFixture) -> None:
    random_calibration("other (sha256 1)").save(weights / FOLDER_FILE)
    assert run("-i", noise(tmp_path / "a.png"), "-o", tmp_path / "out", "--uncertainty") == 1
    assert capsys.readouterr().err.strip().count("\n") == 0 and not (tmp_path / "out").exists()
    assert run("-i", tmp_path / "a.png", "-o", tmp_path / "out") == 0


@pytest.mark.parametrize("samples", [0, 1])
def test_a_large_picture_has_the_same_map(run, calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          samples: int) -> None:
    calibrated()
    seen, finish = [], inference.report.Started.finish

    def finished(self, *rest: object) -> None:
        seen.append(self.error.map.strangeness)
        finish(self, *rest)
    monkeypatch.setattr(inference.report.Started, "finish", finished)
    flags = ("-i", noise(tmp_path / "a.png", (19, 41)), "--uncertainty", "--batch_size", 4,
             *(("--uncertainty_samples", samples) if samples else ()))
    assert run(*flags, "-o", tmp_path / "small") == 0
    monkeypatch.setattr(inference.runner, "LARGE_WINDOWS", 4)
    assert run(*flags, "-o", tmp_path / "large") == 0
    generate, write, left = inference.large.generate_windows, inference.products.ErrorProduct.write, [3, 2, 1]
    whole = seen[-1]

    def stop(place: int) -> None:
        left[place] -= 1
        if not left[place]:
            raise KeyboardInterrupt

    def generate_some(model, work, settings, batch, progress) -> None:
        generate(model, work, settings, batch, lambda n: (progress(n), stop(0)))

    def write_some(self, top: int, errors: Tensor) -> None:
        write(self, top, errors)
        stop(1)
    monkeypatch.setattr(inference.large, "generate_windows", generate_some)
    monkeypatch.setattr(inference.products.ErrorProduct, "write", write_some)
    monkeypatch.setattr(inference.products, "PART", 16)
    for _ in range(2):  # stopped while generating, then while rendering
        assert run(*flags, "-o", tmp_path / "parts") == 130
        assert not list((tmp_path / "parts").glob("*.png"))
    assert left[1] == 0
    monkeypatch.setattr(inference.products.ErrorProduct, "write", write)
    monkeypatch.setattr(inference.report.Started, "finish", lambda *_: stop(2))
    assert run(*flags, "-o", tmp_path / "parts") == 130  # then with all rows rendered
    monkeypatch.setattr(inference.report.Started, "finish", finished)
    monkeypatch.setattr(inference.large, "generate_windows",
                        lambda model, work, *rest: pytest.fail("generated again") if work else None)
    assert run(*flags, "-o", tmp_path / "parts") == 0
    assert seen[-1] == pytest.approx(whole, rel=0.1), "all rows count, whichever run rendered them"
    for folder in ("large", "parts"):
        assert sorted(os.listdir(tmp_path / folder)) == ["a.png", "a_uncertainty.png"]
        for name, most in (("a.png", 1), ("a_uncertainty.png", 24)):
            apart = np.abs(values(tmp_path / folder / name) - values(tmp_path / "small" / name))
            assert apart.max() <= most, (folder, name)


@pytest.mark.slow
def test_ranks_share_the_map_of_a_large_picture(run, calibrated, weights: Path, tmp_path: Path,
                                                caplog: pytest.LogCaptureFixture) -> None:
    """What they tell of the whole picture too, which none of them has seen whole."""
    calibrated(limit=1e-4)
    halves = np.full((101, 104, 3), 128, np.uint8)
    halves[:50] = np.random.default_rng(0).integers(0, 256, (50, 104, 3))
    Image.fromarray(halves).save(tmp_path / "a.png")
    flags = ["-i", str(tmp_path / "a.png"), "--uncertainty", "--batch_size", "4"]
    assert run(*flags, "-o", tmp_path / "one") == 0
    ranks = start_ranks([*flags, "-o", str(tmp_path / "two"), "--model", str(weights), "--dtype", "fp32", "--top_k",
                         "20"])
    warned = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    alone, together = (float(re.search(r"\(([\d.]+) times as far off", text)[1]) for text in (caplog.text, warned[0]))
    assert alone == pytest.approx(together, rel=0.04) and "unlike" not in warned[1]
    name = "a_uncertainty.png"
    assert np.abs(values(tmp_path / "one" / name) - values(tmp_path / "two" / name)).max() <= 24
    assert said(tmp_path / "one" / name) == said(tmp_path / "two" / name)


def test_a_calibration_that_changes_starts_a_stopped_picture_afresh(run, calibrated, tmp_path: Path, weights: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = calibrated()
    plans: list[str] = []
    prepare = inference.runner.WorkFolder.prepare
    monkeypatch.setattr(inference.runner.WorkFolder, "prepare",
                        lambda self, plan: plans.append(json.dumps(plan)) or prepare(self, plan))
    monkeypatch.setattr(inference.runner, "LARGE_WINDOWS", 1)
    flags = ("-i", noise(tmp_path / "a.png"), "-o", tmp_path / "out", "--uncertainty")
    assert run(*flags) == 0 and run(*flags) == 0
    calibration.heads["one"].band.fill_(3.0)
    calibration.save(weights / FOLDER_FILE)
    assert run(*flags) == 0
    assert plans[0] == plans[1] != plans[2]


def test_a_result_without_its_map_is_restored_again(run, tmp_path: Path) -> None:
    source, out = noise(tmp_path / "a.png"), tmp_path / "out"
    flags = ("-i", source, "-o", out, "--skip_existing", "--uncertainty")
    assert run("-i", source, "-o", out) == 0 and run(*flags) == 0 and (out / "a_uncertainty.png").exists()
    times = [path.stat().st_mtime_ns for path in sorted(out.iterdir())]
    assert run(*flags) == 0 and times == [path.stat().st_mtime_ns for path in sorted(out.iterdir())]


def test_maps_are_no_sources(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "a.png")
    flags = ("-i", tmp_path, "-o", tmp_path, "--suffix", "_x4")
    for more in ((), ("--uncertainty",), ("--uncertainty",), (), ("--uncertainty", "--skip_existing")):
        assert run(*flags, *more) == 0
        maps = sorted(set(os.listdir(tmp_path)) - {"a.png", "a_x4.png"})
        assert maps in ([], ["a_x4_uncertainty.png"]) and (maps or not more)
    (tmp_path / "a_x4.png").unlink()  # the map alone is none either
    assert run(*flags) == 0
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a_x4.png", "a_x4_uncertainty.png"]


def test_pictures_in_a_maps_place_are_safe(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise(tmp_path / "a.png")
    flags = ("-i", tmp_path, "-o", tmp_path, "--suffix", "_x4", "--uncertainty")
    before = noise(tmp_path / "a_x4_uncertainty.png", seed=5).read_bytes()
    for more in ((), ("--skip_existing",)):
        assert run(*flags, *more) == 1
        assert "a_x4_uncertainty.png" in capsys.readouterr().err
        assert (tmp_path / "a_x4_uncertainty.png").read_bytes() == before and len(os.listdir(tmp_path)) == 2
    assert run(*flags[:-1]) == 0  # without maps it is a source as any other
    assert (tmp_path / "a_x4_uncertainty_x4.png").exists()


def test_a_picture_in_a_results_place_is_safe_without_a_map(run, tmp_path: Path,
                                                            capsys: pytest.CaptureFixture) -> None:
    """With --skip_existing a result is made again for its map: never over a picture that is no result."""
    noise(tmp_path / "a.jpg")
    before = noise(tmp_path / "a.png", seed=5).read_bytes()
    assert run("-i", tmp_path / "*.jpg", "-o", tmp_path, "--ext", "png", "--skip_existing", "--uncertainty") == 1
    assert "a.png" in capsys.readouterr().err and (tmp_path / "a.png").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.png"]


def test_maps_of_one_name_are_refused(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a.png", "a_uncertainty.jpg"):
        noise(tmp_path / "in" / name)
    flags = ("-i", tmp_path / "in", "-o", tmp_path / "out", "--ext", "png")
    assert run(*flags, "--uncertainty") == 1
    error = capsys.readouterr().err.strip()
    assert "a_uncertainty.png" in error and "\n" not in error and not (tmp_path / "out").exists()
    noise(tmp_path / "two" / "b.png"), noise(tmp_path / "two" / "b.jpg")
    assert run("-i", tmp_path / "two", "-o", tmp_path / "out", "--uncertainty") == 1  # b.png and b.jpg share the map
    assert "b_uncertainty.png" in capsys.readouterr().err
    assert run("-i", tmp_path / "two", "-o", tmp_path / "out") == 0


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("step", ["rows", "finish"])
def test_a_map_that_cannot_be_written_leaves_nothing_half_written(run, tmp_path: Path, large: bool, step: str,
                                                                  monkeypatch: pytest.MonkeyPatch,
                                                                  capsys: pytest.CaptureFixture) -> None:
    for name in "abc":
        noise(tmp_path / "in" / f"{name}.png", (12, 12))
    monkeypatch.setattr(pictures.result_file, "MEMORY_BYTES", 1)
    monkeypatch.setattr(inference.runner, "LARGE_WINDOWS", 1 if large else 256)
    owner, name = (inference.products.ErrorProduct, "write") if step == "rows" else (pictures.result_file, "encode")
    original = getattr(owner, name)

    def full(first: object, second: object, *rest: object) -> None:
        path = first.file.path if step == "rows" else rest[1].target  # of the labels
        if "b_uncertainty" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(first, second, *rest)
    monkeypatch.setattr(owner, name, full)
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--uncertainty", "--batch_size", 1) == 1
    assert "1 failed" in (told := capsys.readouterr().out) and "No space left" in told
    found = set(os.listdir(tmp_path / "out"))
    assert found - {"b.png"} == {"a.png", "a_uncertainty.png", "c.png", "c_uncertainty.png"}


def test_results_of_every_kind_have_maps(run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    noise(folder / "clear.png", mode="RGBA")
    noise(folder / "gray.png", mode="L")
    noise(folder / "photo.jpg")
    noise(folder / "web.webp")
    Image.fromarray(np.random.default_rng(1).integers(0, 65536, (8, 9), dtype=np.uint16)).save(folder / "deep.png")
    names = ("clear", "deep", "gray", "photo", "web")
    assert run("-i", folder, "-o", tmp_path / "out", "--uncertainty") == 0
    assert run("-i", folder, "-o", tmp_path / "plain") == 0
    results = sorted(os.listdir(tmp_path / "plain"))
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*results, *(f"{name}_uncertainty.png" for name in names)])
    for name in results:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    for name in names:
        with Image.open(tmp_path / "out" / f"{name}_uncertainty.png") as picture:
            assert picture.mode == "I;16" and picture.size == (36, 32)
    for ending in ("jpg", "webp"):
        assert run("-i", folder / "clear.png", "-o", tmp_path / f"b.{ending}", "--uncertainty") == 0
        assert (tmp_path / "b_uncertainty.png").exists()


@pytest.mark.parametrize("flags, words", [
    (("--uncertainty_samples", 2), "--uncertainty"), (("--uncertainty", "--uncertainty_samples", 0), "0"),
    (("--uncertainty", "--uncertainty_samples", 65), "65"), (("--uncertainty", "-o", "-"), "standard output"),
    (("--uncertainty", "--mask", "m.png", "--resume_from", "b.png"), "--mask")])
def test_flags_that_do_not_go_together(run, tmp_path: Path, capsys: pytest.CaptureFixture, flags: tuple,
                                       words: str) -> None:
    try:
        code = run("-i", noise(tmp_path / "a.png"), "-o", tmp_path / "out", *flags)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 1 and words in error and "\n" not in error and os.listdir(tmp_path) == ["a.png"]


def test_the_sheet_shows_the_map(run, tmp_path: Path) -> None:
    noise(tmp_path / "LR" / "a.png")
    noise(tmp_path / "HR" / "a.png", (36, 32))
    flags = ("-i", tmp_path / "LR", "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png")
    assert run(*flags) == 0
    plain = Image.open(tmp_path / "sheet.png").width
    rows: list = []
    sheet = inference.runner.sheet_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference.runner, "sheet_of", lambda chosen: rows.append(chosen) or sheet(chosen))
        assert run(*flags, "--uncertainty") == 0
    assert Image.open(tmp_path / "sheet.png").width > plain
    assert rows[0]["a"].labels == ("bicubic", "VARSR", "expected error", "HR")
