"""The web page in headless Chromium, as its users see it: results, files, cancellation, two of them at once."""
from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import app
from inference.settings import EMBEDDED
from tests.loops import LOOPBACK, free_port
from tests.page_gate import Gate

gradio = pytest.importorskip("gradio", reason="NOTICE: no test of the web page without gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="NOTICE: no browser test without playwright")
expect = sync_api.expect

PATIENCE = 60_000  # ms: a machine may be busy
ARTIST, NAME = 0x013B, "A. Painter"  # an EXIF field
SAMPLE = Path(app.__file__).resolve().parent / "testset" / "sample" / "LR"


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[str]:
    """The page's address; fails where the server itself asks anyone outside for something."""
    from web.page import build_page
    from web.server import serve
    port = free_port()
    args = app.build_parser().parse_args(["--port", str(port), "--device", "cpu", "--max_pixels", "2.5", "--model",
                                          str(EMBEDDED[True])])
    connect, called = socket.socket.connect, []

    def watched(self: socket.socket, address: tuple) -> None:
        called.append(address)
        connect(self, address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(socket.socket, "connect", watched)
        page = build_page(args)
        serve(page, args, quiet=True)
        yield f"http://{LOOPBACK}:{port}"
        page.close(verbose=False)
    outside = [address for address in called if isinstance(address, tuple) and address[0] not in (LOOPBACK, "::1")]
    assert not outside


@pytest.fixture()
def open_page(browser, server: str) -> Iterator[Callable]:
    """Opens the page in a session of its own; fails where it asks another host for anything, or a script fails."""
    contexts, asked, errors = [], [], []

    def opened():
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(server)
        expect(tab.locator("#status")).to_contain_text("Drop a picture", timeout=PATIENCE)
        return tab
    yield opened
    for context in contexts:
        context.close()
    assert not errors
    assert not [url for url in asked if not url.startswith((server, server.replace("http", "ws"), "data:", "blob:"))]


@pytest.fixture()
def page(open_page: Callable):
    """The page in one session."""
    return open_page()


@pytest.fixture()
def small_picture(tmp_path: Path) -> Path:
    """A picture with EXIF and a text whose result is one window."""
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Title", "a test")
    exif[ARTIST] = NAME
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png", pnginfo=text, exif=exif)
    return tmp_path / "small.png"


def upload(tab, path: Path) -> None:
    """Give the page a picture and wait until it has looked at it."""
    tab.set_input_files("#source input[type=file]", path)
    expect(tab.locator("#status")).to_contain_text(path.name, timeout=PATIENCE)


def clear(tab) -> None:
    """Take the picture out of its field."""
    tab.locator("#source").get_by_label("Clear").or_(tab.locator("#source button[aria-label*=lear]")).first.click()


def type_into(field, text: str) -> None:
    """As a person does: click into the field once it has stopped moving, type, leave it."""
    field.click()
    field.clear()
    field.press_sequentially(text)
    field.press("Tab")
    expect(field).to_have_value(text)


def start_job(tab) -> None:
    """Restore a sample with the gate closed; return when its first windows are on their way."""
    upload(tab, SAMPLE / "cat.png")
    tab.locator("#run").click()
    expect(tab.locator("#status")).to_contain_text("scale 1 of", timeout=PATIENCE)


def press_cancel(tab) -> None:
    """Return when the server knows of it."""
    with tab.expect_response(lambda response: "/run/" in response.url):
        tab.locator("#cancel").click()


def test_upload_run_slider_download(page, small_picture: Path, tmp_path: Path) -> None:
    upload(page, small_picture)
    expect(page.locator("#status")).to_have_text("small.png: 16x12 pixels, 8 bits")
    page.get_by_label("Seed").first.fill("7")
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("16x12 to 64x48, 1 windows", timeout=PATIENCE)
    slider = page.locator("#slider")
    expect(slider).to_be_visible()
    expect(page.locator("#preview")).to_be_hidden()
    sizes = slider.locator("img").evaluate_all("all => all.map(one => [one.naturalWidth, one.naturalHeight])")
    assert sizes.count([64, 48]) >= 2  # bicubic and restored
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "small_x4.png"
    download.value.save_as(tmp_path / "got.png")
    with Image.open(tmp_path / "got.png") as result:
        assert result.size == (64, 48) and result.getexif()[ARTIST] == NAME
        assert "seed=7" in result.text["VARSR"] and "varsr-tiny" in result.text["VARSR"]


def paint(tab) -> None:
    """A stroke through the middle of the editor's canvas."""
    canvas = tab.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    left, top = box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2
    tab.mouse.move(left, top)
    tab.mouse.down()
    tab.mouse.move(left + box["width"] * 0.2, top, steps=2)
    tab.mouse.up()


def test_a_region_is_redone(page, small_picture: Path, tmp_path: Path) -> None:
    uploads = []
    page.on("request", lambda request: uploads.append(request.url) if "upload" in request.url else None)
    upload(page, small_picture)
    page.locator("#errors input").check()
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("16x12 to 64x48", timeout=PATIENCE)
    expect(page.locator("#error_map")).to_contain_text("Expected error: calibrated")
    expect(page.locator("#error_note")).to_contain_text("levels of 0 to 255")
    page.get_by_role("button", name="Redo a region").click()
    expect(page.locator("#editor canvas").first).to_be_visible(timeout=PATIENCE)
    page.locator("#variants").click()
    expect(page.locator("#redo_status")).to_have_text("⚠ nothing is painted: paint the region that shall be drawn anew",
                                                      timeout=PATIENCE)
    paint(page)
    uploads.clear()
    page.locator("#variants").click()
    expect(page.locator("#redo_status")).to_contain_text("variant 4 of 4 (seed 4)", timeout=PATIENCE)
    assert len(uploads) <= 3  # not at every news
    expect(page.locator("#choices img")).to_have_count(5)
    page.locator("#choices img").nth(2).click()
    expect(page.locator("#status")).to_have_text("✔ small_x4.png: variant 2", timeout=PATIENCE)
    expect(page.locator("#error_map")).to_be_hidden()
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "got.png")
    with Image.open(tmp_path / "got.png") as result:
        assert "redone seed=2" in result.text["VARSR"] and result.getexif()[ARTIST] == NAME
    clear(page)
    expect(page.locator("#redo")).to_be_hidden()


def test_the_slider_moves(page, small_picture: Path) -> None:
    upload(page, small_picture)
    page.locator("#run").click()
    expect(page.locator("#slider")).to_be_visible(timeout=PATIENCE)
    handle = page.locator("#slider .handle-wrapper, #slider .outer").first

    def place() -> float:
        return handle.bounding_box()["x"]
    before, box = place(), handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 150, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    assert place() < before - 100


def test_an_example_is_taken_and_scales_appear(page) -> None:
    page.locator("#examples img").nth(2).click()
    expect(page.locator("#status")).to_contain_text("cat.png: 112x74", timeout=PATIENCE)
    before = page.locator("#preview img").get_attribute("src")
    page.evaluate("""() => {
        window.news = [];
        const note = () => window.news.push([document.querySelector('#status').textContent,
                                             document.querySelector('#preview img')?.src]);
        new MutationObserver(note).observe(document.body, {subtree: true, childList: true, attributes: true});
    }""")
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("112x74 to 448x296", timeout=PATIENCE)
    news = page.evaluate("window.news")
    assert any("scale" in text and "of 7" in text for text, _ in news)
    assert len({picture for _, picture in news if picture and picture != before}) >= 3  # several previews


def test_cancelled_and_ready_again(page, small_picture: Path, gate: Gate) -> None:
    with gate.closed():
        start_job(page)
        press_cancel(page)
    expect(page.locator("#status")).to_contain_text("cancelled", timeout=PATIENCE)
    expect(page.locator("#download")).to_be_hidden()
    clear(page)
    upload(page, small_picture)
    page.get_by_label("number input for Scale").fill("2")
    page.get_by_label("number input for Scale").press("Enter")
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("16x12 to 32x24", timeout=PATIENCE)


def test_bad_files_are_told_in_one_line(page, tmp_path: Path) -> None:
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("there is no picture yet", timeout=PATIENCE)
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    upload(page, tmp_path / "broken.png")
    text = page.locator("#status").inner_text()
    assert text.startswith("⚠ broken.png") and "\n" not in text.strip() and "/" not in text
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("⚠ broken.png", timeout=PATIENCE)
    expect(page.locator("#slider")).to_be_hidden()


def test_wrong_guidance_and_too_large_a_result_are_refused(page, tmp_path: Path) -> None:
    Image.new("RGB", (600, 300)).save(tmp_path / "wide.png")
    upload(page, tmp_path / "wide.png")
    type_into(page.locator("#dial input, #dial textarea"), "300")
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("LR consistency 300 is out of range", timeout=PATIENCE)
    type_into(page.locator("#dial input, #dial textarea"), "")
    page.get_by_role("button", name="More settings").click()
    guidance = page.get_by_label("Guidance").first
    type_into(guidance, "much")
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("guidance 'much' is no number", timeout=PATIENCE)
    type_into(guidance, "3")
    page.locator("#run").click()
    expect(page.locator("#status")).to_contain_text("over the limit of 2.5 million pixels", timeout=PATIENCE)


def test_two_sessions_take_turns(open_page: Callable, small_picture: Path, gate: Gate) -> None:
    first, second = open_page(), open_page()
    with gate.closed():
        start_job(first)
        upload(second, small_picture)
        second.locator("#run").click()
        expect(second.locator("#status")).to_contain_text("waiting for the model", timeout=PATIENCE)
        press_cancel(second)  # its own job alone
        expect(second.locator("#status")).to_contain_text("cancelled", timeout=PATIENCE)
        second.locator("#run").click()
        expect(second.locator("#status")).to_contain_text("waiting for the model", timeout=PATIENCE)
        expect(first.locator("#status")).to_contain_text("scale")  # still at work
        press_cancel(first)
    expect(first.locator("#status")).to_contain_text("cancelled", timeout=PATIENCE)
    expect(second.locator("#status")).to_contain_text("16x12 to 64x48", timeout=PATIENCE)
    expect(first.locator("#download")).to_be_hidden()


def test_classes_are_drawn(page, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Class to image").click()
    expect(page.locator("#classes")).to_contain_text("earth")
    page.locator("#draw").click()
    own = json.loads((EMBEDDED[False] / "config.json").read_text())["generation"]["cfg"]
    expect(page.locator("#class_status")).to_contain_text(f"8 pictures, seed 0, cfg {own:g}", timeout=PATIENCE)
    assert page.locator("#gallery img").count() >= 8
    with page.expect_download() as download:
        page.locator("#download_sheet").click()
    download.value.save_as(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height > 4 * 128
