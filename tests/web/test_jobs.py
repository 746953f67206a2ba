"""What the web page asks of the engine, without a browser: news in order, cancellation anywhere, limits, files."""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_class_model, small_model
from loops import run
from PIL import Image

import app
import test_tile as tile_script
from inference import settings as load
from inference.classes import ClassPicture, draw
from inference.restore import restore, restore_with_errors
from inference.settings import ModelDescription, RestoreSettings
from inference.uncertainty import ErrorMap
from inference.windows import TiledPicture
from models.varsr import VARSR
from models.weights.save import save_pretrained
from models.weights.transfer import with_detail
from pictures.rgb import TensorSource, read_image, save_picture
from web.error_view import ErrorView
from web.jobs import (
    ClassRequest,
    Models,
    RestoreRequest,
    Tell,
    Update,
    draw_classes,
    model_sources,
    restore_file,
    stream,
)
from web.messages import one_line
from web.sessions import Cancelled

PLENTY = 10 ** 7
SMALL = ModelDescription("model /here/small", "model small")


@pytest.fixture()
def source(tmp_path: Path) -> Path:
    """A picture whose result is made of several windows of the small model."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    (tmp_path / "out").mkdir()
    return tmp_path / "noise.png"


def told(work: Callable[[Tell], None]) -> list[Update]:
    """Everything that a job tells."""
    found: list[Update] = []
    work(found.append)
    return found


def stopping_at(last: int) -> Tell:
    """A listener that lets `last` news pass and then wants no more."""
    seen = iter(range(last))

    def tell(update: Update) -> None:
        if next(seen, None) is None:
            raise Cancelled
    return tell


async def heard(work: Callable[[Tell], None], check: Callable[[], None] = lambda: None) -> list[str]:
    """The messages of a stream."""
    return [update.message async for update in stream(work, check)]


def test_a_stream_hands_out_the_news_in_order_the_last_one_in_any_case() -> None:
    def work(tell: Tell) -> None:
        for number in range(5):
            tell(Update(str(number)))
    messages = run(heard(work))
    assert messages == sorted(set(messages)) and messages[-1] == "4"


def test_of_many_news_only_some_are_handed_out() -> None:
    """Showing them takes time; those that came meanwhile must not pile up."""
    def work(tell: Tell) -> None:
        for number in range(10_000):
            tell(Update(str(number)))
    found = run(heard(work))
    assert len(found) < 100 and found[-1] == "9999"


def test_a_stream_raises_what_the_work_raises_after_its_news() -> None:
    def work(tell: Tell) -> None:
        tell(Update("first"))
        raise ValueError("reason")

    async def listen() -> None:
        news = stream(work, lambda: None)
        assert (await anext(news)).message == "first"
        with pytest.raises(ValueError, match="reason"):
            await anext(news)
    run(listen())


@pytest.mark.parametrize("closed", [False, True])
def test_what_failed_work_held_in_memory_is_free_at_once(closed: bool) -> None:
    held: list[weakref.ref] = []

    class Memory:
        """As a model's activations: large, and referred to by a frame alone."""

    def work(tell: Tell) -> None:
        memory = Memory()
        held.append(weakref.ref(memory))
        for _ in range(1000 if closed else 1):
            tell(Update("on"))
            time.sleep(0.001)
        raise ValueError("reason")

    async def listen() -> None:
        if closed:
            async with aclosing(stream(work, lambda: None)) as news:
                await anext(news)
        else:
            with contextlib.suppress(ValueError):
                await heard(work)
    gc.collect()
    gc.disable()
    try:
        run(listen())
        assert held[0]() is None
    finally:
        gc.enable()


def test_a_stopped_or_closed_stream_ends_the_work() -> None:
    stopped, ended = threading.Event(), []

    def check() -> None:
        if stopped.is_set():
            raise Cancelled

    def work(tell: Tell) -> None:
        try:
            while True:
                tell(Update("on"))
        except Cancelled:
            ended.append(True)
            raise

    async def listen() -> None:
        async with aclosing(stream(work, check)) as news:
            await anext(news)  # then the page is gone
        assert len(ended) == 1
        news = stream(work, check)
        await anext(news)
        stopped.set()
        with pytest.raises(Cancelled):
            while True:
                await anext(news)
        with pytest.raises(Cancelled):
            await heard(work, check)
    run(listen())
    assert len(ended) == 3


@pytest.mark.parametrize("values, reason", [
    ({"scale": 0.5}, "scale"), ({"scale": 17}, "scale"), ({"seed": -1}, "seed"), ({"seed": 2 ** 40}, "seed"),
    ({"overlap": 1.0}, "overlap"), ({"color_fix": "sepia"}, "colour fix"), ({"cfg": 1e308}, "guidance"),
    ({"cfg": float("nan")}, "guidance"), ({"fidelity": -1}, "fidelity"), ({"kind": "exe"}, "result file"),
    ({"fastvar": (0.1, 2.0)}, "dropped"), ({"scale": "4"}, "scale"), ({"seed": 1.5}, "seed")])
def test_requests_out_of_range_are_refused(values: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RestoreRequest(Path("a.png"), **values)


@pytest.mark.parametrize("labels, values, reason", [((), {}, "class"), ((1, 2), {"count": 9}, "18 pictures"),
                                                    ((1,), {"count": 0}, "0 pictures"), ((1,), {"seed": -1}, "seed"),
                                                    ((1,), {"count": 10 ** 6}, "pictures of each"),
                                                    ((1,), {"cfg": float("inf")}, "guidance")])
def test_class_requests_out_of_range_are_refused(labels: tuple, values: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ClassRequest(labels, **values)


def test_a_job_gives_the_file_of_the_script(model: VARSR, weights: Path, source: Path) -> None:
    request = RestoreRequest(source, seed=5, cfg=1.5, fastvar=(0.4, 0.3))
    news = told(lambda tell: restore_file(model, SMALL, request, source.parent / "out", PLENTY, tell))
    flags = ("-i", source, "-o", source.parent / "x.png", "--model", weights, "--seed", 5, "--cfg", 1.5, "--dtype",
             "fp32", "--fastvar")
    assert tile_script.main([str(flag) for flag in flags]) == 0
    result = Image.open(news[-1].file)
    difference = np.asarray(result).astype(int) - np.asarray(Image.open(source.parent / "x.png"))
    assert result.size == (80, 36) and np.abs(difference).max() <= 1
    assert "seed=5" in result.text["VARSR"] and result.text["Software"].startswith("VARSR")


@pytest.mark.parametrize("side, windows", [(4, 1), (18, 9)])
def test_script_page_and_api_guide_alike(tmp_path: Path, side: int, windows: int) -> None:
    """A model may have another guidance for several windows: all three ways must take it, and --cfg wins."""
    guided = small_model()
    generation = dataclasses.replace(guided.config.generation, cfg=1.0, tiled_cfg=6.0)
    guided.config = dataclasses.replace(guided.config, generation=generation)
    save_pretrained(guided, tmp_path / "guided")
    save_picture(Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)),
                 tmp_path / "a.png")

    def by_page(cfg: float | None = None) -> torch.Tensor:
        request = RestoreRequest(tmp_path / "a.png", cfg=cfg)
        return told(lambda tell: restore_file(guided, SMALL, request, tmp_path / "out", PLENTY, tell))[-1].pictures[1]

    def by_script(*flags: str) -> torch.Tensor:
        assert tile_script.main(["-i", str(tmp_path / "a.png"), "-o", str(tmp_path / "x.png"), "--model",
                                 str(tmp_path / "guided"), "--dtype", "fp32", *flags]) == 0
        return read_image(tmp_path / "x.png")
    lr = read_image(tmp_path / "a.png")
    picture = TiledPicture(TensorSource(lr), (side * 4, side * 4), guided.config)
    assert len(picture.grid) == windows
    api = restore(guided, lr, RestoreSettings(generation))
    for each in (by_page(), by_script()):
        torch.testing.assert_close(each, api, atol=1.1 / 255, rtol=0)
    one = restore(guided, lr, RestoreSettings(dataclasses.replace(generation, tiled_cfg=None)))
    assert (torch.equal(api, one)) == (windows == 1)
    torch.testing.assert_close(by_page(cfg=1.0), one, atol=1.1 / 255, rtol=0)
    torch.testing.assert_close(by_script("--cfg", "1"), one, atol=1.1 / 255, rtol=0)


def test_fast_is_the_fast_of_the_script(model: VARSR, weights: Path, source: Path) -> None:
    def result(request: RestoreRequest) -> torch.Tensor:
        news = told(lambda tell: restore_file(model, SMALL, request, source.parent / "out", PLENTY, tell))
        return news[-1].pictures[1]
    plain, fast = result(RestoreRequest(source, cfg=2.0)), result(RestoreRequest(source, cfg=2.0, fast=True))
    flags = ("-i", source, "-o", source.parent / "x.png", "--model", weights, "--cfg", 2, "--dtype", "fp32", "--fast")
    assert tile_script.main([str(flag) for flag in flags]) == 0
    torch.testing.assert_close(fast, read_image(source.parent / "x.png"), atol=1.1 / 255, rtol=0)
    assert (fast - plain).abs().max() > 2 / 255


def test_fidelity_is_the_fidelity_of_the_script(source: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detailed = with_detail(small_model(), 8, 1)
    save_pretrained(detailed, tmp_path / "detailed")
    made = {}
    for fidelity in (0.0, 0.5, 1.0):
        request = RestoreRequest(source, fidelity=fidelity)
        news = told(lambda tell, request=request: restore_file(detailed, SMALL, request, tmp_path / "out", PLENTY,
                                                               tell))
        flags = ("-i", source, "-o", tmp_path / "x.png", "--model", tmp_path / "detailed", "--fidelity", fidelity,
                 "--dtype", "fp32")
        assert tile_script.main([str(flag) for flag in flags]) == 0
        made[fidelity] = news[-1].pictures[1]
        torch.testing.assert_close(made[fidelity], read_image(tmp_path / "x.png"), atol=1.1 / 255, rtol=0)
    assert (made[0.0] - made[1.0]).abs().max() > 2 / 255
    own = told(lambda tell: restore_file(detailed, SMALL, RestoreRequest(source), tmp_path / "out", PLENTY, tell))
    torch.testing.assert_close(own[-1].pictures[1], made[0.0], atol=0, rtol=0)


def test_the_promise_is_the_promise_of_the_script(model: VARSR, weights: Path, source: Path) -> None:
    request = RestoreRequest(source, lr_consistency=0.5)
    news = told(lambda tell: restore_file(model, SMALL, request, source.parent / "out", PLENTY, tell))
    flags = ("-i", source, "-o", source.parent / "x.png", "--model", weights, "--dtype", "fp32",
             "--lr_consistency", 0.5)
    assert tile_script.main([str(flag) for flag in flags]) == 0
    torch.testing.assert_close(news[-1].pictures[1], read_image(source.parent / "x.png"), atol=1.1 / 255, rtol=0)
    with Image.open(news[-1].file) as result, Image.open(source.parent / "x.png") as other:
        assert "lr_consistency=0.5" in result.text["VARSR"] and "lr_residual=" in result.text["VARSR"]
        assert result.text["VARSR"].partition(";")[2] == other.text["VARSR"].partition(";")[2]
    assert "0.5 were promised" in news[-1].message  # which noise does not allow
    for value in (-1, 256, float("nan")):
        with pytest.raises(ValueError, match="LR consistency"):
            RestoreRequest(source, lr_consistency=value)


def test_a_promise_that_is_kept_needs_no_words(model: VARSR, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((20, 9)).convert("RGB").save(tmp_path / "a.png")
    request = RestoreRequest(tmp_path / "a.png", lr_consistency=0.5)
    news = told(lambda tell: restore_file(model, SMALL, request, tmp_path / "out", PLENTY, tell))
    assert "promised" not in news[-1].message


def test_errors_come_with_the_same_picture(model: VARSR, source: Path) -> None:
    def result(errors: bool) -> Update:
        request = RestoreRequest(source, errors=errors)
        return told(lambda tell: restore_file(model, SMALL, request, source.parent / "out", PLENTY, tell))[-1]
    with_errors, plain = result(True), result(False)
    assert torch.equal(with_errors.pictures[1], plain.pictures[1]) and plain.error is None
    view = with_errors.error
    assert view.picture.shape == (3, 36, 80) and view.label == "Expected error: uncalibrated guess"
    assert "uncalibrated" in view.note and "⚠" not in view.note
    _, levels, error = restore_with_errors(model, read_image(source), RestoreSettings(model.config.generation))
    torch.testing.assert_close(view.picture, ErrorView.of(levels, error).picture, atol=3 / 255, rtol=0)


@pytest.mark.parametrize("strangeness, warns", [(None, False), (1.0, False), (2.34, True)])
def test_errors_outside_the_calibration_come_with_a_warning(strangeness: float | None, warns: bool) -> None:
    warning = ErrorMap.warning.fget(argparse.Namespace(strangeness=strangeness))
    error = argparse.Namespace(head=object(), warning=warning, description="levels")
    view = ErrorView.of(torch.rand(20, 3000), error)
    assert view.label == "Expected error: calibrated" and view.note.startswith("levels")
    assert ("2.3 times as far off" in view.note) == ("do not rely" in view.note) == warns
    assert view.picture.shape == (3, 14, 2048)


def test_every_scale_and_window_is_told(model: VARSR, source: Path) -> None:
    news = told(lambda tell: restore_file(model, SMALL, RestoreRequest(source), source.parent / "out", PLENTY, tell))
    text = "\n".join(update.message for update in news)
    sides = model.config.vqvae.scales
    assert all(f"scale {k + 1} of {len(sides)} ({side}x{side})" in text for k, side in enumerate(sides))
    shares = [update.share for update in news]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert len({tuple(update.pictures[0].flatten().tolist()) for update in news[1:len(sides)]}) > 1  # it changes
    assert [tuple(picture.shape) for picture in news[-1].pictures] == [(3, 36, 80)] * 2


def test_the_last_preview_is_the_result(model: VARSR, source: Path) -> None:
    size = model.config.image_size // 4
    Image.open(source).resize((size, size)).save(source)  # one window, as large as the preview
    request = RestoreRequest(source, color_fix="none")
    news = told(lambda tell: restore_file(model, SMALL, request, source.parent / "out", PLENTY, tell))
    preview = [update for update in news if update.message.startswith("window 1 of 1")][-1]
    torch.testing.assert_close(preview.pictures[0].clamp(0, 1), news[-1].pictures[1], atol=1 / 255, rtol=0)


def test_cancelled_anywhere_nothing_half_written_stays(model: VARSR, source: Path) -> None:
    def run(tell: Tell) -> None:
        restore_file(model, SMALL, RestoreRequest(source, scale=2), source.parent / "out", PLENTY, tell)
    for last in range(len(told(run))):
        for old in (source.parent / "out").iterdir():
            old.unlink()
        with pytest.raises(Cancelled):
            run(stopping_at(last))
        for left in (source.parent / "out").iterdir():  # the whole result, if the last news was not wanted
            assert left.name == "noise_x2.png" and Image.open(left).size == (40, 18)


def test_limits_and_broken_files_are_told_by_name(model: VARSR, source: Path) -> None:
    def run(request: RestoreRequest, max_pixels: int) -> str:
        with pytest.raises(ValueError) as caught:
            restore_file(model, SMALL, request, source.parent / "out", max_pixels, stopping_at(0))
        assert not list((source.parent / "out").iterdir())
        return one_line(caught.value)
    assert "noise.png" in run(RestoreRequest(source), 179)  # the picture itself has 180
    message = run(RestoreRequest(source), 180 * 16 - 1)
    assert message.startswith("noise.png: a result of 80x36") and "smaller" in message
    source.write_bytes(source.read_bytes()[:60])
    message = run(RestoreRequest(source), PLENTY)
    assert "noise.png" in message and str(source.parent) not in message and "\n" not in message


def test_class_pictures_are_those_of_the_script(tmp_path: Path) -> None:
    model = small_class_model()
    request = ClassRequest((0, 2), count=3, seed=4)  # two batches
    news = told(lambda tell: draw_classes(model, request, tmp_path, tell))
    wanted = [ClassPicture(label, index) for label in (0, 2) for index in range(3)]
    pairs = draw(model, wanted, model.config.generation, 4, 6)
    for (_, expected), found in zip(pairs, news[-1].pictures, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert news[-1].titles[0] == news[-1].titles[2] != news[-1].titles[3]
    shares = [update.share for update in news]
    assert shares == sorted(shares) and shares[-1] == 1
    assert Image.open(news[-1].file).format == "PNG"
    with pytest.raises(ValueError, match="0 to 2"):
        draw_classes(model, ClassRequest((3,)), tmp_path, stopping_at(0))


def test_cancelled_classes_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        draw_classes(small_class_model(), ClassRequest((0,)), tmp_path, stopping_at(1))
    assert not list(tmp_path.iterdir())


def test_one_model_is_in_memory_at_a_time(weights: Path, tmp_path: Path) -> None:
    models = Models("cpu", "fp32")
    save_pretrained(small_model(seed=1), tmp_path / "other")
    first = models.get(str(weights))
    assert models.get(str(weights)) is first and str(weights) in str(first[1])
    other, _ = models.get(str(tmp_path / "other"))
    assert models.loaded[0] is other and other is not first[0]
    with pytest.raises(FileNotFoundError):
        models.get(str(tmp_path / "nothing"))
    assert models.get(str(weights))[0] is not first[0]


def test_the_published_model_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(model=None)
    assert list(model_sources(args, False).values()) == [str(load.EMBEDDED[False])]
    monkeypatch.setitem(load.PUBLISHED, True, tmp_path / "VARSR.pth")
    (tmp_path / "VARSR.pth").touch()
    assert list(model_sources(args, True).values()) == [str(tmp_path / "VARSR.pth"), str(load.EMBEDDED[True])]
    assert list(model_sources(argparse.Namespace(model="a/b"), True).items()) == [("b", "a/b")]


def test_the_script_listens_to_this_computer_alone(capsys: pytest.CaptureFixture,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.build_parser().parse_args([]).host == "127.0.0.1"
    monkeypatch.delitem(sys.modules, "web.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    assert app.main([]) == 1
    assert capsys.readouterr().err == "app.py: gradio is missing: pip install -r requirements-app.txt\n"
