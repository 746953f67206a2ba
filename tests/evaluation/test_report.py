"""The report in a real browser, opened from disk without a network; and its plots."""
from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from metric_pairs import pair

import evaluate as script
from evaluation.report.plots import distribution, nice_ticks
from pictures.rgb import write_image

EVIL = "<img src=x onerror=alert(1)>'\"&"  # as a method's name
EVIL_FILE = "</script><b>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three pictures, the first with pictures after each scale, the last with a name full of markup."""
    folder = tmp_path_factory.mktemp("report")
    for name, index in (("a", 1), ("b", 2), (EVIL_FILE.replace("/", "_"), 3)):
        image, reference = (part[:, :120, :160] for part in pair(index))
        write_image(folder / "HR" / f"{name}.png", reference)
        write_image(folder / "SR" / f"{name}.png", image)
        write_image(folder / "LR" / f"{name}.png", reference[:, ::4, ::4])
    write_image(folder / "SR" / "lonely.png", torch.zeros(3, 20, 20))
    for side in (1, 16, 2):
        write_image(folder / "SR" / "a_scales" / f"side{side}.png", torch.full((3, 30, 40), side / 16))
    assert script.main([str(flag) for flag in (
        "--results", folder / "SR", "--names", EVIL, "--hr", folder / "HR", "--lr", folder / "LR", "--output",
        folder / "out")]) == 1
    return folder / "out" / "report.html"


@pytest.fixture()
def page(browser, report: Path) -> Iterator:
    """The report in a tab without a network; fails where anything but the file is asked for, or a script fails."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, offline=True)
    tab, asked, errors = context.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("dialog", lambda dialog: errors.append(dialog.message))
    tab.goto(report.as_uri())
    yield tab
    assert not errors and all(url.startswith(("data:", report.as_uri())) for url in asked)
    context.close()


def shown(page) -> dict[str, object]:
    """What a user sees of the comparison."""
    return page.evaluate("""() => ({
        name: document.querySelector('#list [aria-current=true]').textContent,
        left: document.getElementById('left-tag').textContent, right: document.getElementById('right-tag').textContent,
        zoom: parseInt(document.getElementById('zoom').textContent),
        split: parseFloat(document.getElementById('divider').style.left),
        loaded: document.getElementById('over').naturalWidth > 0 && document.getElementById('under').naturalWidth > 0,
        place: document.getElementById('over').style.transform,
        same: document.getElementById('over').style.transform === document.getElementById('under').style.transform,
    })""")


def test_the_page_opens_with_a_comparison(page, tmp_path: Path) -> None:
    page.wait_for_function("document.getElementById('over').complete && document.getElementById('under').complete")
    state = shown(page)
    assert (state["name"], state["left"], state["right"]) == ("<_script><b>", "bicubic", EVIL)
    assert state["loaded"] and state["same"]
    assert page.locator("section").count() == 4 and page.locator("figure svg").count() >= 4
    assert "lonely" in page.locator(".note.failed").text_content()
    assert EVIL in page.locator("table.means").inner_text()
    page.screenshot(path=tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 20_000


def test_keyboard(page) -> None:
    order = []
    for _ in range(5):
        order.append(shown(page)["name"])
        page.keyboard.press("ArrowRight")
    assert order == ["<_script><b>", "a", "b", "lonely", "<_script><b>"]  # a result without its original is shown alone
    before = shown(page)
    page.keyboard.press("3")
    page.keyboard.press("Shift+Digit2")
    page.keyboard.press("d")
    page.keyboard.press("+")
    after = shown(page)
    assert (after["right"], after["left"]) == ("HR", EVIL)
    assert after["split"] > before["split"] and after["zoom"] > before["zoom"]
    page.keyboard.press("0")
    assert shown(page)["zoom"] == before["zoom"]


def test_mouse(page) -> None:
    page.locator("#viewer").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    handle = page.locator("#divider span").bounding_box()
    page.mouse.move(handle["x"] + 15, handle["y"] + 15)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, handle["y"] + 15, steps=3)
    page.mouse.up()
    state = shown(page)
    assert state["split"] == pytest.approx(box["width"] / 4, abs=2)
    page.mouse.wheel(0, -800)
    page.wait_for_function(f"parseInt(document.getElementById('zoom').textContent) > {state['zoom']}")
    zoomed = shown(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + 90, steps=3)
    page.mouse.up()
    moved = shown(page)
    assert moved["place"] != zoomed["place"] and moved["same"] and moved["split"] == zoomed["split"]


def test_pictures_after_each_scale(page) -> None:
    assert page.locator("#strip button").count() == 0
    page.locator("#list button", has_text=re.compile("^a$")).click()
    assert page.locator("#strip span").all_text_contents() == ["1×1", "2×2", "16×16"]
    page.locator("#strip button").nth(1).click()
    assert shown(page)["left"] == f"{EVIL}, side 2"


class Sources(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in ("src", "href")]


def test_the_page_needs_no_other_file(report: Path) -> None:
    text, sources = report.read_text(encoding="utf-8"), Sources()
    sources.feed(text)
    assert sources.found == [] and "url(" not in text and "@import" not in text
    assert re.findall(r"https?://[\w.]+", text) == []


def test_a_plot_is_well_formed_and_ordered() -> None:
    drawing = ElementTree.fromstring(distribution({EVIL: [1.0, 2.0, float("inf")], "flat": [5.0]}))
    places = [float(circle.get("cx")) for circle in drawing.iter("circle")]
    assert len(places) == 3 and places == sorted(places)
    assert distribution({"nothing": [float("inf")]}) == ""


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 17), (0.001, 0.0012), (99, 100)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
