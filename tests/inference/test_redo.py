"""Parts of results drawn anew: what stays is exactly what was there, what is new depends on the seed alone."""
from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import inference.large
import inference.redo
import inference.runner
import inference.settings
import test_tile as script
from benchmarks.bench_seams import redone_border_ratio
from inference.redo import (
    FEATHER,
    Mask,
    kept_codes,
    redo,
    redo_with_tokens,
)
from inference.restore import restore, restore_with_tokens
from inference.settings import RestoreSettings, prepare
from inference.tokens import Making, TokenState, code_type, flat, read_tokens
from inference.windows import TiledPicture
from models.config import VARIED_TOP_K, GenerationConfig
from models.varsr import VARSR
from models.weights.save import save_pretrained
from pictures.picture import read_making
from pictures.result_file import ResultFile
from pictures.rgb import TensorSource
from tests.conftest import color_profile, small_model
from tests.embedded import embedded_model, levels_apart, sample_lr
from utils.errors import UserError

SAMPLED = RestoreSettings(GenerationConfig(cfg=1.0, top_k=20, top_p=1.0))
SIZE = (20, 22)  # LR pixels: windows of the debug model in several rows and columns
BOX = (30, 20, 61, 55)  # top, left, bottom, right of the result's redone part: across windows


@pytest.fixture()
def run(weights: Path) -> Callable[..., int]:
    """The script on the debug model, with flags of any type."""
    def call(*flags: object) -> int:
        return script.main([str(flag) for flag in (*flags, "--model", weights, "--dtype", "fp32")])
    return call


def noise(path: Path, size: tuple[int, int] = SIZE, mode: str = "RGB", **options: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def box(size: tuple[int, int] = (80, 88), place: tuple[int, int, int, int] = BOX) -> torch.Tensor:
    """A mask (H, W)."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[place[0]:place[2], place[1]:place[3]] = True
    return mask


def mask_file(path: Path, mask: torch.Tensor) -> Path:
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(path)
    return path


def samples(path: Path) -> np.ndarray:
    """A result's samples as its file holds them."""
    if path.suffix == ".tif":
        return tifffile.imread(path)
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture()
def restored(run, tmp_path: Path) -> Callable[..., tuple]:
    """A restored picture with its tokens, and the flags that redo the box of it."""
    def make(source: Path, *flags: object, save: bool = True) -> tuple[Path, tuple]:
        result = tmp_path / "out" / source.name
        assert run("-i", source, "-o", result, *(("--save_tokens",) if save else ()), *flags) == 0
        mask = mask_file(tmp_path / "mask.png", box())
        return result, ("-i", source, "--resume_from", result, "--mask", mask)
    return make


# ---- in memory ----

@pytest.fixture(scope="module")
def before(model: VARSR) -> tuple[torch.Tensor, torch.Tensor, TokenState]:
    """An LR picture, what it was restored to, and its state."""
    lr = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    return lr, *restore_with_tokens(model, lr, SAMPLED)


def seeded(seed: int, **changes: object) -> RestoreSettings:
    return dataclasses.replace(SAMPLED, seed=seed, **changes)


def test_the_state_changes_nothing(model: VARSR, before: tuple) -> None:
    lr, picture, state = before
    assert torch.equal(restore(model, lr, SAMPLED), picture) and state.windows > 4


def test_only_the_mask_changes_and_four_seeds_differ(model: VARSR, before: tuple) -> None:
    lr, picture, state = before
    mask, results = box(), []
    for seed in range(1, 5):
        results.append(redo(model, lr, state, mask, seeded(seed), picture))
        assert torch.equal(results[-1][:, ~mask], picture[:, ~mask])
    for i, one in enumerate(results):
        assert not any(torch.equal(one, other) for other in (picture, *results[:i]))
    assert (results[0] != picture).any(dim=0)[mask].float().mean() > 0.9


def test_the_same_seed_gives_the_same_picture_whatever_the_batch(model: VARSR, before: tuple) -> None:
    lr, picture, state = before
    one, four = (redo(model, lr, state, box(), seeded(7, batch_size=size), picture) for size in (1, 4))
    torch.testing.assert_close(one, four, atol=1e-4, rtol=0)


def test_latents_outside_the_mask_are_put_back(model: VARSR, before: tuple) -> None:
    lr, picture, state = before
    _, new = redo_with_tokens(model, lr, state, box(), seeded(1), picture)
    changed = [index for index in range(state.windows) if not torch.equal(new.latents[index], state.latents[index])]
    assert 0 < len(changed) < state.windows
    cells = box(place=(24, 16, 64, 56)).float().unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).amax((1, 3)).bool()
    for window in TiledPicture(TensorSource(lr), (80, 88), model.config).grid:
        inside = cells[window.top:window.top + 4, window.left:window.left + 4]
        same = (new.latents[window.index] == state.latents[window.index]).all(dim=0)
        assert same[~inside].all()
        kept = new.codes[window.index][-16:] == state.codes[window.index][-16:]
        assert kept.view(4, 4)[~inside].all()


def test_a_whole_mask_is_a_plain_restoration(model: VARSR, before: tuple) -> None:
    lr, picture, state = before
    mask = torch.ones(80, 88, dtype=torch.bool)
    other, plain = redo(model, lr, state, mask, seeded(5), picture), restore(model, lr, seeded(5))
    assert torch.equal(other, plain)  # the picture's own edges are no border


def test_redoing_goes_on_from_what_was_redone(model: VARSR, before: tuple) -> None:
    lr, picture, state = before
    first, second = box(place=(0, 0, 40, 40)), box(place=(40, 44, 80, 88))
    one, state_one = redo_with_tokens(model, lr, state, first, seeded(1), picture)
    two, _ = redo_with_tokens(model, lr, state_one, second, seeded(2), one)
    assert torch.equal(two[:, ~second], one[:, ~second]) and not torch.equal(two[:, second], one[:, second])


def test_a_state_holds_on_to_nothing_that_it_was_made_from(model: VARSR, before: tuple) -> None:
    """However often it goes on: no memory, no depth of calls."""
    lr, picture, state = before
    earlier = [weakref.ref(state := redo_with_tokens(model, lr, state, box(), seeded(seed), picture)[1])
               for seed in range(3)]
    gc.collect()
    assert [each() is not None for each in earlier] == [False, False, True]
    batch = torch.arange(10)
    copy = flat(TokenState(state.making, {0: batch[:5]}, {0: torch.ones(2, 2, 2)}, 1))
    assert torch.equal(copy.codes[0], batch[:5]) and copy.codes[0].untyped_storage().nbytes() == 5 * 8


def test_what_does_not_belong_together_is_refused(model: VARSR, before: tuple) -> None:
    lr, picture, state = before
    for arguments, said in (((lr, state, box((80, 80)), seeded(1), picture), "80x80 pixels"),
                            ((lr, state, box(), seeded(1), picture[:, :70]), "88x70 pixels"),
                            ((lr.flip(2), state, box(), seeded(1), picture), "another picture"),
                            ((lr, state, box(), seeded(1), (picture * 255).byte()), "original: values of torch.uint8"),
                            ((lr, state, torch.zeros(80, 88), seeded(1), picture), "white")):
        with pytest.raises(UserError, match=said):
            redo(model, *arguments)
    smooth = dataclasses.replace(SAMPLED, generation=GenerationConfig(more_smooth=True))
    with pytest.raises(UserError, match="more_smooth"):
        restore_with_tokens(model, lr, smooth)


def test_a_state_belongs_to_the_weights_that_drew_it(model: VARSR, before: tuple, tmp_path: Path) -> None:
    lr, picture, state = before
    path = tmp_path / "a_tokens.safetensors"
    with state.written_to(path, model.config):
        pass
    for each in (state, read_tokens(path)):
        with pytest.raises(UserError, match="other weights"):
            redo(small_model(seed=1), lr, each, box(), seeded(1), picture)
    redo(prepare(small_model()), lr, state, box(), seeded(1), picture)
    nameless = dataclasses.replace(state, making=dataclasses.replace(state.making, weights=""))  # of an older file
    redo(small_model(seed=1), lr, nameless, box(), seeded(1), picture)


def test_which_codes_are_kept() -> None:
    coverage = torch.zeros(4, 4)
    coverage[0, 0], coverage[2:, 2:] = 0.01, 1.0
    kept = kept_codes(coverage, (1, 2, 4))
    assert kept[:1].all() and kept[1:5].tolist() == [True, True, True, False]
    assert torch.equal(kept[5:].view(4, 4), coverage == 0)
    assert not kept_codes(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), (1, 2))[0]  # exactly half of it


def test_weights_rise_from_the_border_inwards() -> None:
    mask = Mask(box((60, 90), (0, 20, 40, 70)))  # its first row is the picture's
    whole = torch.from_numpy(mask.weights(0, 60))
    assert torch.equal(whole > 0, mask.pixels)
    assert whole[0, 40] == 1 and whole[0, 20] < 0.05 and whole[39, 40] < 0.05 and whole[40 - FEATHER - 1, 45] == 1
    assert (whole[5, 20:20 + FEATHER].diff() > 0).all()
    parts = torch.cat([torch.from_numpy(mask.weights(top, min(7, 60 - top))) for top in range(0, 60, 7)])
    assert torch.equal(parts, whole)


def test_the_border_of_a_mask_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """As steps across it, in a picture of the embedded model; without the feather there are some."""
    tiny, place = prepare(embedded_model(torch.device("cpu"))), (30, 35, 90, 100)
    lr, own = sample_lr("cat", 30, 10, 40, 32), tiny.config.generation
    assert own.top_k == 1
    picture, state = restore_with_tokens(tiny, lr, RestoreSettings(own))
    mask, settings = box(picture.shape[1:], place), RestoreSettings(own.varied(), seed=1)
    soft = redo(tiny, lr, state, mask, settings, picture)
    assert levels_apart(soft, picture)[:, mask].mean() > 2  # seen beside each other
    monkeypatch.setattr(inference.redo, "FEATHER", 0)
    hard = redo(tiny, lr, state, mask, settings, picture)
    ratios = [redone_border_ratio(each, picture, place) for each in (soft, hard)]
    assert abs(ratios[0] - 1) < 0.02 and ratios[1] > 1.1


# ---- files ----

def test_a_token_file_holds_what_it_was_given(before: tuple, model: VARSR, tmp_path: Path) -> None:
    _, _, state = before
    path = tmp_path / "a_tokens.safetensors"
    with state.written_to(path, model.config):
        assert not path.exists()
    again = read_tokens(path)
    assert again.making == state.making and again.windows == state.windows
    for index in range(state.windows):
        assert torch.equal(again.latents[index], state.latents[index])
        assert torch.equal(again.codes[index].long(), state.codes[index]) and len(again.codes[index]) == 21
    assert code_type(model.config) == again.codes[0].dtype == torch.uint8
    from safetensors.torch import load_file
    assert {name: tuple(part.shape) for name, part in load_file(path).items()} == {
        "codes": (state.windows, 21), "latents": (state.windows, *state.latents[0].shape)}
    assert Making.from_json(state.making.to_json()) == state.making


@pytest.mark.parametrize(("name", "mode", "flags"), [
    ("a.png", "RGB", ()), ("a.png", "RGBA", ()), ("a.png", "L", ()), ("a.tif", "RGB", ()), ("a.tif", "RGBA", ()),
    ("a.png", "LA", ()), ("profile.png", "RGB", ()), ("a.png", "RGB", ("--color_fix", "adain")),
    ("a.png", "RGB", ("--strip_metadata",))])
def test_pixels_outside_are_those_of_the_file(run, restored, tmp_path: Path, name: str, mode: str,
                                              flags: tuple) -> None:
    profile = {"icc_profile": color_profile()} if name.startswith("profile") else {}
    result, redone = restored(noise(tmp_path / name, mode=mode, **profile), *flags)
    out = tmp_path / f"new{result.suffix}"
    strip = ("--strip_metadata",) if "--strip_metadata" in flags else ()
    assert run(*redone, "-o", out, "--seed", 3, *strip) == 0
    old, new, mask = samples(result), samples(out), box().numpy()
    assert old.dtype == new.dtype and old.shape == new.shape
    assert (old[~mask] == new[~mask]).all() and (old[mask] != new[mask]).any()
    assert Image.open(out).info.get("icc_profile") == Image.open(result).info.get("icc_profile")


def test_sixteen_bits_stay_as_they_are(run, restored, tmp_path: Path) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (*SIZE, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "rgb.tif", deep, photometric="rgb")
    Image.fromarray(deep[:, :, 0]).save(tmp_path / "gray.png")
    for name in ("rgb.tif", "gray.png"):
        result, redone = restored(tmp_path / name)
        out = tmp_path / f"new_{name}"
        assert run(*redone, "-o", out, "--seed", 3) == 0
        old, new, mask = samples(result), samples(out), box().numpy()
        assert old.dtype == new.dtype == np.uint16
        assert (old[~mask] == new[~mask]).all() and (old[mask] != new[mask]).mean() > 0.9


def test_what_was_painted_into_the_result_stays(run, restored, tmp_path: Path) -> None:
    """Its own pixels count, not what the tokens would give."""
    result, redone = restored(noise(tmp_path / "a.png"))
    painted = np.array(Image.open(result))
    painted[:10] = 17
    with Image.open(result) as before:
        Image.fromarray(painted).save(result, pnginfo=None)
        assert before.info["VARSR"]
    assert run(*redone, "-o", tmp_path / "b.png", "--seed", 1) == 0
    assert (samples(tmp_path / "b.png")[:10] == 17).all()


def test_seeds_batches_and_what_the_file_says(run, restored, tmp_path: Path) -> None:
    result, redone = restored(noise(tmp_path / "a.png"))
    pictures = []
    for seed, batch in ((1, 1), (1, 4), (2, 4)):
        assert run(*redone, "-o", tmp_path / f"{seed}_{batch}.png", "--seed", seed, "--batch_size", batch) == 0
        pictures.append(samples(tmp_path / f"{seed}_{batch}.png").astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 < np.abs(pictures[0] - pictures[2]).max()
    line = read_making(tmp_path / "2_4.png")
    assert line.startswith(read_making(result)) and "share=0.15" in line
    assert f"; redone seed=2 top_k={VARIED_TOP_K} top_p=1 " in line  # the model's own is the likeliest
    assert run(*redone, "-o", tmp_path / "greedy.png", "--seed", 2, "--top_k", 1) == 0
    assert "redone seed=2 top_k=1 " in read_making(tmp_path / "greedy.png")


def test_redoing_a_file_goes_on_from_its_new_tokens(run, restored, tmp_path: Path) -> None:
    result, redone = restored(noise(tmp_path / "a.png"))
    assert run(*redone, "-o", tmp_path / "b.png", "--seed", 1, "--save_tokens") == 0
    second = mask_file(tmp_path / "second.png", box(place=(0, 0, 24, 24)))
    assert run("-i", tmp_path / "a.png", "--resume_from", tmp_path / "b.png", "--mask", second, "-o",
               tmp_path / "c.png", "--seed", 2) == 0
    old, new, mask = samples(tmp_path / "b.png"), samples(tmp_path / "c.png"), box(place=(0, 0, 24, 24)).numpy()
    assert (old[~mask] == new[~mask]).all() and (old[mask] != new[mask]).any()
    assert read_making(tmp_path / "c.png").count("redone") == 2


def test_without_a_token_file_they_are_computed_again(run, restored, tmp_path: Path, capfd: pytest.CaptureFixture,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    source = noise(tmp_path / "a.png")
    flags = ("--seed", 5, "--cfg", 1, "--top_k", 9, "--tile_overlap", 0.4)
    result, redone = restored(source, *flags)
    assert run(*redone, "-o", tmp_path / "kept.png", "--seed", 3) == 0
    (tmp_path / "out" / "a_tokens.safetensors").unlink()
    with caplog.at_level("INFO"):
        assert run(*redone, "-o", tmp_path / "again.png", "--seed", 3) == 0
    assert "computed again" in caplog.text
    assert (samples(tmp_path / "kept.png") == samples(tmp_path / "again.png")).all()
    assert run("-i", source, "-o", result, *flags, "--strip_metadata") == 0
    assert run(*redone, "-o", tmp_path / "no.png") == 1 and "--save_tokens" in capfd.readouterr().err
    assert run("-i", source, "-o", result, "--fast") == 0
    assert run(*redone, "-o", tmp_path / "no.png") == 1 and "tokens pruned" in capfd.readouterr().err
    assert not (tmp_path / "no.png").exists()


def test_pruned_pictures_have_tokens_too(run, restored, tmp_path: Path) -> None:
    result, redone = restored(noise(tmp_path / "a.png"), "--fastvar", "--fastvar_min_keep", 2,
                              "--fastvar_later_layer_start", 1)
    out = tmp_path / "b.png"
    assert run(*redone, "-o", out, "--seed", 1, "--fast") == 0
    mask = box().numpy()
    assert (samples(result)[~mask] == samples(out)[~mask]).all()


def test_a_large_picture_is_continued_with_its_tokens(run, restored, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise(tmp_path / "a.png")
    whole, redone = restored(source)
    expected = read_tokens(tmp_path / "out" / "a_tokens.safetensors")
    monkeypatch.setattr(inference.runner, "LARGE_WINDOWS", 3)
    generate, left = inference.large.generate_windows, [2]

    def stopping(count: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    def some(model, work, settings, batch, progress) -> None:
        generate(model, work, settings, batch, lambda count: (progress(count), stopping(count)))
    monkeypatch.setattr(inference.large, "generate_windows", some)
    parts = tmp_path / "parts" / "a.png"
    for flags in (("-i", source, "-o", parts, "--save_tokens"),
                  (*redone, "-o", parts.with_name("b.png"), "--save_tokens", "--seed", 1)):
        left[0] = 2
        assert run(*flags, "--batch_size", 4) == 130 and not Path(flags[flags.index("-o") + 1]).exists()
        left[0] = -1
        assert run(*flags, "--batch_size", 4) == 0
    assert sorted(path.name for path in parts.parent.iterdir()) == ["a.png", "a_tokens.safetensors", "b.png",
                                                                    "b_tokens.safetensors"]
    tokens = read_tokens(parts.with_name("a_tokens.safetensors"))
    for index in range(expected.windows):
        assert torch.equal(tokens.codes[index], expected.codes[index])
        torch.testing.assert_close(tokens.latents[index], expected.latents[index], atol=1e-4, rtol=0)
    old, new, mask = samples(whole), samples(parts.with_name("b.png")), box().numpy()
    assert (old[~mask] == new[~mask]).all() and (old[mask] != new[mask]).any()
    monkeypatch.undo()
    assert run(*redone, "-o", tmp_path / "small.png", "--seed", 1) == 0  # the same, not as a large one
    assert np.abs(samples(tmp_path / "small.png").astype(int) - new).max() <= 1


def test_rows_outside_the_mask_are_not_rendered(run, restored, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    _, redone = restored(noise(tmp_path / "a.png"))
    rows, write = [], ResultFile.write_rows

    def noting(self: ResultFile, top: int, pixels: torch.Tensor) -> None:
        rows.extend(range(top, top + pixels.shape[1]))
        write(self, top, pixels)
    monkeypatch.setattr(ResultFile, "write_rows", noting)
    assert run(*redone, "-o", tmp_path / "b.png") == 0
    assert rows == list(range(BOX[0], BOX[2]))


# ---- what cannot be done ----

def write_header(path: Path, **changes: str) -> None:
    """A token file with other texts in its header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    header["__metadata__"].update(changes)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length:])


def test_what_cannot_be_redone_is_told_in_one_line(run, restored, tmp_path: Path, capfd: pytest.CaptureFixture,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise(tmp_path / "a.png")
    result, redone = restored(source)
    tokens, out, mask = result.with_name("a_tokens.safetensors"), tmp_path / "new" / "b.png", tmp_path / "mask.png"
    flags, whole = (*redone, "-o", out), tokens.read_bytes()
    small = mask_file(tmp_path / "small.png", box((80, 80)))
    black = mask_file(tmp_path / "black.png", torch.zeros(80, 88, dtype=torch.bool))
    (tmp_path / "no.png").write_text("no picture")
    (tmp_path / "two").mkdir()
    noise(tmp_path / "two" / "a.png"), noise(tmp_path / "two" / "b.png")
    other = noise(tmp_path / "other.png", (21, 22))

    def loads(*args: object) -> None:
        raise AssertionError("the model was loaded")
    monkeypatch.setattr("inference.settings.load_model", loads)

    def said(*given: object) -> str:
        capfd.readouterr()
        assert run(*given) == 1 and not out.parent.exists()
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "unforeseen" not in lines[0], lines
        return lines[0]
    assert "80x80" in (line := said(*flags, "--mask", small)) and "88x80" in line
    assert "white" in said(*flags, "--mask", black)
    assert "no.png" in said(*flags, "--mask", tmp_path / "no.png")
    assert "none.png" in said(*flags, "--mask", tmp_path / "none.png")
    assert "--mask goes with" in said("-i", source, "-o", out, "--mask", mask)
    assert "--resume_from goes with" in said("-i", source, "-o", out, "--resume_from", result)
    assert "2" in said("-i", tmp_path / "two", "-o", out.parent, "--resume_from", result, "--mask", mask)
    assert "another picture" in said("-i", other, *flags[2:])
    assert "none.png" in said(*flags, "--resume_from", tmp_path / "none.png")
    assert "what the flags ask for" in said(*flags, "--scale", 2)
    assert "--input" in said("--resume_from", result, "--mask", mask)
    assert "overwritten" in said(*redone, "-o", result)
    assert "overwritten" in said(*redone, "-o", result.with_suffix(".tif"), "--save_tokens")
    write_header(tokens, version="0")
    assert "version" in said(*flags)
    write_header(tokens, version="1", making="{}")
    assert "damaged" in said(*flags)
    tokens.write_bytes(whole[:-9])
    assert "damaged" in said(*flags)
    tokens.write_bytes(b"nonsense")
    assert "damaged" in said(*flags)
    tokens.write_bytes(whole)
    line = read_making(result)
    save_pretrained(small_model(seed=1), tmp_path / "model")
    monkeypatch.setattr(inference.settings, "model_source", lambda args: tmp_path / "model")
    assert line.partition(" (")[0] in (told := said(*flags)) and "another model" in told


def test_a_result_that_was_made_since_is_told(run, restored, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    source = noise(tmp_path / "a.png")
    result, redone = restored(source)
    assert run("-i", source, "-o", result, "--seed", 8) == 0
    assert run(*redone, "-o", tmp_path / "b.png") == 1 and "another result" in capfd.readouterr().err
    assert run("-i", source, "-o", result, "--scale", 3) == 0
    mask = mask_file(tmp_path / "mask.png", box((60, 66)))
    assert run(*redone, "-o", tmp_path / "b.png", "--mask", mask) == 1
    assert "66x60 pixels" in (line := capfd.readouterr().err) and "88x80" in line


def test_damaged_tokens_and_other_samples_cost_the_picture(run, restored, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture) -> None:
    result, redone = restored(noise(tmp_path / "a.png"))
    assert run(*redone, "-o", tmp_path / "b.png", "--strip_metadata") == 0  # sRGB either way
    tokens = result.with_name("a_tokens.safetensors")
    whole = tokens.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    tokens.write_bytes(whole[:end] + b"\xff" * (len(whole) - end))
    assert run(*redone, "-o", tmp_path / "c.png") == 1
    assert "damaged" in capsys.readouterr().out and not (tmp_path / "c.png").exists()
    tokens.write_bytes(whole)
    picture = result.read_bytes()
    result.write_bytes(picture[:len(picture) * 2 // 3])
    assert run(*redone, "-o", tmp_path / "c.png") == 1
    assert str(result) in capsys.readouterr().out and not (tmp_path / "c.png").exists()
    result.write_bytes(picture)
    Image.open(result).convert("L").save(result)
    assert run(*redone, "-o", tmp_path / "c.png") == 1
    assert "gray" in capsys.readouterr().out and not (tmp_path / "c.png").exists()


def test_names_of_token_files_are_checked(run, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    source = noise(tmp_path / "in" / "a.png")
    noise(tmp_path / "in" / "a.jpg")
    out = tmp_path / "out"
    assert run("-i", tmp_path / "in", "-o", out, "--save_tokens") == 1
    assert "both be written" in capfd.readouterr().err and not out.exists()
    out.mkdir()
    mine = out / "a_tokens.safetensors"
    mine.write_text("mine")
    assert run("-i", source, "-o", out, "--save_tokens") == 1
    assert "overwrite" in capfd.readouterr().err and mine.read_text() == "mine" and len(list(out.iterdir())) == 1
    mine.unlink()
    assert run("-i", source, "-o", out, "--save_tokens", "--log", mine) == 1 and not mine.exists()
    assert run("-i", source, "-o", "-", "--save_tokens") == 1
    for _ in range(2):  # our own may be replaced
        assert run("-i", source, "-o", out, "--save_tokens") == 0


def test_a_result_that_cannot_be_written_leaves_no_tokens(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ResultFile) -> None:
        raise OSError("No space left on device")
    monkeypatch.setattr(ResultFile, "finish", full)
    assert run("-i", noise(tmp_path / "a.png"), "-o", tmp_path / "out", "--save_tokens") == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_promise_does_not_go_over_to_a_redone_part(run, restored, tmp_path: Path,
                                                     capfd: pytest.CaptureFixture) -> None:
    result, redone = restored(noise(tmp_path / "a.png"), "--lr_consistency", 2)
    assert "lr_consistency=2" in read_making(result) and "lr_residual=" in read_making(result)
    capfd.readouterr()
    assert run(*redone, "-o", tmp_path / "no.png", "--lr_consistency", 2) == 1
    assert "--lr_consistency is for whole pictures" in capfd.readouterr().err and not (tmp_path / "no.png").exists()
    assert run(*redone, "-o", tmp_path / "b.png", "--seed", 1) == 0
    assert "redone" in read_making(tmp_path / "b.png") and "lr_" not in read_making(tmp_path / "b.png")
