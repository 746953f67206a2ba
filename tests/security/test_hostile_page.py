"""The page and visitors who mean harm, over HTTP and in the browser: one line each, and the next good job is done."""
from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import noise_picture, small_model
from PIL import Image

import app
from models.weights.save import save_pretrained
from tests.loops import LOOPBACK, free_port, run
from tests.page_gate import Gate
from tests.security.page_client import API, STATUS, Visitor, plain, visiting

gradio = pytest.importorskip("gradio", reason="NOTICE: no test of the web page without gradio")

ROOT = Path(app.__file__).resolve().parent
PATIENCE = 60_000  # ms
OUTSIDE = "picture.varsr.example"  # a name that nobody has
MEGABYTES = 1  # of the largest file
NAN, HUGE = float("nan"), 10 ** 4000


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Names and addresses that the server has looked for."""
    return []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, asked: list[str], gate: Gate) -> Iterator[str]:
    """The page's address, with a small model."""
    from web.page import build_page
    from web.server import serve
    model = tmp_path_factory.mktemp("model") / "small"
    save_pretrained(small_model(), model)
    args = app.build_parser().parse_args([
        "--port", str(free_port()), "--device", "cpu", "--dtype", "fp32", "--max_pixels", "0.05", "--max_megabytes",
        str(MEGABYTES), "--max_waiting", "2", "--model", str(model)])
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def resolved(host: Any, *rest: Any, **named: Any) -> Any:
        asked.append(str(host))
        return resolve(host, *rest, **named)

    def connected(self: socket.socket, address: Any) -> None:
        asked.append(str(address[0]) if isinstance(address, tuple) else "")
        connect(self, address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr("web.sessions.NEWS_SECONDS", 0.5)  # so that a page which has gone is noticed sooner
        patch.setattr(socket, "getaddrinfo", resolved)
        patch.setattr(socket.socket, "connect", connected)
        page = build_page(args)
        serve(page, args, quiet=True)
        yield f"http://{LOOPBACK}:{args.port}"
        page.close(verbose=False)


def png(height: int = 4, width: int = 5) -> bytes:
    stream = io.BytesIO()
    noise_picture(height, width).save(stream, "PNG")
    return stream.getvalue()


def visit(server: str, act: Callable[[Visitor, dict], Awaitable[None]]) -> None:
    """A session with an uploaded picture; whatever it did, the next one's good job is done."""
    async def both() -> None:
        async with visiting(server) as visitor:
            await act(visitor, await visitor.upload("small.png", png()))
        async with visiting(server) as other:
            outputs = await other.restore(await other.upload("good.png", png()))
            assert plain(outputs[STATUS]).startswith("✔ good_x4.png")
    run(both())


def is_one_line(status: str, word: str) -> bool:
    return status.startswith("⚠ ") and word in status and "\n" not in status and len(status) < 200 \
        and "unforeseen" not in status and "Traceback" not in status


BAD_FIELDS = [
    ("seed", -1, "seed"), ("seed", 1.5, "seed"), ("seed", HUGE, "seed"), ("seed", "0", "seed"), ("seed", [], "seed"),
    ("scale", NAN, "scale"), ("scale", 1e308, "scale"), ("scale", None, "scale"), ("scale", "4", "scale"),
    ("scale", {"a": 1}, "scale"), ("cfg", "1e308", "guidance"), ("cfg", 1e308, "guidance"), ("cfg", "nan", "guidance"),
    ("cfg", "much" * 10_000, "guidance"), ("cfg", "a\nb\x1b[31m", "guidance"), ("cfg", [], "guidance"),
    ("fidelity", 5, "fidelity"), ("color_fix", "sepia", "colour fix"), ("color_fix", None, "colour fix"),
    ("overlap", 1, "overlap"), ("overlap", True, "overlap"), ("kind", "../../x", "result file"), ("fast", 1, "fast"),
    ("fastvar", "yes", "FastVAR"), ("model", "/etc", "model"), ("model", ["small"], "model"), ("model", {}, "model"),
    ("model", None, "model")]


@pytest.mark.parametrize("name, value, word", BAD_FIELDS, ids=lambda value: str(value)[:12])
def test_a_bad_field_is_told_and_the_next_job_is_done(server: str, name: str, value: object, word: str) -> None:
    async def act(visitor: Visitor, file: dict) -> None:
        assert is_one_line(plain((await visitor.restore(file, **{name: value}))[STATUS]), word)
        outputs = await visitor.restore(file, seed=3)
        assert plain(outputs[STATUS]).startswith("✔ small_x4.png")
        with Image.open(io.BytesIO(await visitor.download(outputs))) as result:
            assert result.size == (20, 16) and "seed=3" in result.text["VARSR"]
    visit(server, act)


@pytest.mark.parametrize("labels, values, word", [
    ("abc", {}, "classes"), ([-1], {}, "out of range"), ([10 ** 9], {}, "out of range"), ([1.5], {}, "classes"),
    ([None], {}, "classes"), ([], {}, "class"), (None, {}, "class"), ([1] * 100_000, {}, "100000 classes"),
    ([1], {"count": 10 ** 9}, "pictures of each"), ([1], {"count": NAN}, "pictures of each"),
    ([1], {"seed": -1}, "seed"), ([1], {"cfg": "nan"}, "guidance"), ([1], {"name": 5}, "model")],
    ids=lambda value: str(value)[:12])
def test_bad_fields_of_classes_are_told(server: str, labels: object, values: dict, word: str) -> None:
    async def act(visitor: Visitor, _: dict) -> None:
        fields = {"name": visitor.models[1], "labels": labels, "count": 1, "seed": 0, "cfg": "", **values}
        assert is_one_line(plain((await visitor.ask("draw", list(fields.values())))[STATUS]), word)
    visit(server, act)


@pytest.mark.parametrize("value", [5, "x", [], {}, True, [{}], {"meta": {"_type": "gradio.FileData"}}, None],
                         ids=str)
@pytest.mark.parametrize("step", ["restore", "look"])
def test_what_is_no_file_is_told(server: str, step: str, value: object) -> None:
    async def act(visitor: Visitor, _: dict) -> None:
        outputs = await visitor.ask(step, visitor.fields(value) if step == "restore" else [value])
        if value is None and step == "look":
            assert outputs[STATUS] == "Drop a picture or take an example."
        else:
            assert is_one_line(plain(outputs[STATUS]), "picture")
    visit(server, act)


def test_a_list_of_a_million_is_refused(server: str) -> None:
    async def act(visitor: Visitor, _: dict) -> None:
        answer = await visitor.post("draw", ["x", [1] * 10 ** 6, 1, 0, ""])
        assert answer.status_code == 413 and "too long" in answer.json()["detail"]
    visit(server, act)


def test_no_address_is_ever_asked_for(server: str, asked: list[str]) -> None:
    """Neither as a picture, whatever it comes with, nor through gradio's own ways to fetch one."""
    async def act(visitor: Visitor, file: dict) -> None:
        asked.clear()
        with socket.create_server((LOOPBACK, 0)) as listener:
            listener.settimeout(0.1)
            near = f"http://{LOOPBACK}:{listener.getsockname()[1]}/x.png"
            for url in (near, f"http://{OUTSIDE}/x.png", f"https://{OUTSIDE}/x.png"):
                for value in ({**file, "path": url}, {"path": url}, [{**file, "path": url}]):
                    answer = await visitor.post("restore", visitor.fields(value))
                    assert answer.status_code == 400 and "upload it first" in answer.json()["detail"]
                    answer = await visitor.post("look", [value])
                    assert answer.status_code == 400
                for way in ("file=", "proxy=", "file/"):
                    assert (await visitor.http.get(f"{API}/{way}{url}")).status_code == 404
                outputs = await visitor.restore({**file, "url": url})
                assert plain(outputs[STATUS]).startswith("✔ small_x4.png")
            with pytest.raises(TimeoutError):
                listener.accept()
        assert not set(asked) - {LOOPBACK, "localhost", ""}
    visit(server, act)


def test_nothing_is_given_out_but_uploads_and_results(server: str) -> None:
    async def act(visitor: Visitor, file: dict) -> None:
        folder = Path(file["path"]).parent.parent
        (folder / "deep_links").mkdir(exist_ok=True)
        (folder / "deep_links" / "state.json").write_text("[]")
        assert (await visitor.http.get(f"{API}/file={file['path']}")).content == png()
        for path in ("/etc/passwd", ROOT / "config.json", ROOT / "app.py", "app.py", "../app.py", folder,
                     Path(file["path"]).parent, f"{file['path']}/../../../../../../etc/passwd",
                     folder / "deep_links" / "state.json", "~/.bashrc", "/proc/self/environ", "file:///etc/passwd"):
            for way in ("file=", "file=%2e%2e/", "file=//"):
                answer = await visitor.http.get(f"{API}/{way}{path}")
                assert answer.status_code == 404 and "root:" not in answer.text, (way, path)
        for path in ("/etc/passwd", str(ROOT / "app.py"), str(folder / "deep_links" / "state.json")):
            answer = await visitor.post("restore", visitor.fields({**file, "path": path}))
            assert answer.status_code == 400
    visit(server, act)


def test_names_and_sessions_of_others_are_not_told(server: str) -> None:
    """Whoever does not know a file's hash or a session's name does not learn them here."""
    async def act(visitor: Visitor, file: dict) -> None:
        await visitor.restore(file)
        async with visiting(server) as other:
            for path in ("/", "/config", f"{API}/info", f"{API}/queue/status", "/monitoring/summary", "/theme.css"):
                text = (await other.http.get(path)).text
                assert visitor.session not in text and Path(file["path"]).parent.name not in text
            answer = await other.http.get(f"{API}/file={Path(file['path']).parent.parent / ('0' * 64)}/small.png")
            assert answer.status_code == 404
    visit(server, act)


@pytest.mark.parametrize("body", [b"x", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(100), b"%!PS\n", b"<svg/>"])
def test_broken_pictures_are_told_by_their_name(server: str, body: bytes) -> None:
    async def act(visitor: Visitor, _: dict) -> None:
        file = await visitor.upload("b_r_o_k_e_n.png", body)
        for outputs in (await visitor.ask("look", [file]), await visitor.restore(file)):
            status = outputs[STATUS]
            assert plain(status).startswith("⚠ b_r_o_k_e_n.png: ") and "/" not in plain(status)
            assert "b\\_r\\_o" in status  # nor is it Markdown
    visit(server, act)


def test_uploads_are_limited(server: str) -> None:
    async def act(visitor: Visitor, _: dict) -> None:
        answer = await visitor.http.post(f"{API}/upload", files={"files": ("x.png", bytes(MEGABYTES * 10 ** 6 * 2))})
        assert answer.status_code == 413 and "at most 1 MB" in answer.json()["detail"]
        many = [("files", (f"{number}.png", bytes(400_000))) for number in range(5)]
        assert (await visitor.http.post(f"{API}/upload", files=many)).status_code == 413

        async def endless():
            yield b"--b\r\n"
        answer = await visitor.http.post(f"{API}/upload", content=endless(),
                                         headers={"content-type": "multipart/form-data; boundary=b"})
        assert answer.status_code == 411
    visit(server, act)


def test_a_full_line_is_told_in_one_line(server: str, gate: Gate) -> None:
    """Two may wait here. Nobody is thrown out of the line by whoever comes later."""
    async def act(visitor: Visitor, file: dict) -> None:
        async with visiting(server) as second, visiting(server) as third, visiting(server) as fourth:
            reading = []
            with gate.closed():
                for one in (visitor, second, third):
                    await one.post("restore", one.fields(file))
                    news = one.messages()
                    while (await anext(news))["msg"] != "process_generating":
                        pass
                    reading.append(news)
                assert is_one_line(plain((await fourth.restore(file))[STATUS]), "2 jobs are waiting already")
                for one in (visitor, second, third):
                    await one.cancel()
            for news in reading:
                last = [message async for message in news][-1]
                assert plain(last["output"]["data"][STATUS]) == "cancelled"
            assert plain((await fourth.restore(file))[STATUS]).startswith("✔")
    visit(server, act)


def test_cancel_and_replace_are_for_ones_own_jobs(server: str, gate: Gate) -> None:
    async def act(visitor: Visitor, file: dict) -> None:
        async with visiting(server) as other:
            with gate.closed():
                await visitor.post("restore", visitor.fields(file, scale=8))
                await other.cancel()
                body = {"data": [], "fn_index": visitor.steps["cancel"]}  # without a session
                await other.http.post(f"{API}/run/cancel", json=body)
                body = {"session_hash": "*", "fn_index": visitor.steps["restore"], "event_id": "x"}
                await other.http.post(f"{API}/cancel", json=body)
            (end,) = (await visitor.ends()).values()
            assert plain(end["output"]["data"][STATUS]).startswith("✔")
            with gate.closed():
                await visitor.post("restore", visitor.fields(file, scale=16))
                last = (await visitor.post("restore", visitor.fields(file, scale=2))).json()["event_id"]
            assert plain((await visitor.ends())[last]["output"]["data"][STATUS]).startswith("✔ small_x2.png")
    visit(server, act)


def test_a_step_cannot_go_past_the_line(server: str) -> None:
    async def act(visitor: Visitor, file: dict) -> None:
        body = {"data": visitor.fields(file), "session_hash": visitor.session}
        for way in ("run", "api"):
            assert (await visitor.http.post(f"{API}/{way}/restore", json=body)).status_code == 404
    visit(server, act)


@pytest.fixture()
def program(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen, str]]]:
    """Starts app.py as a program of its own, in a place for temporary files that is ours to look into."""
    started, without_place = [], {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    (tmp_path / "tmp").mkdir()
    save_pretrained(small_model(), tmp_path / "small")

    def start(*flags: str, **environment: str) -> tuple[subprocess.Popen, str]:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), "--model", str(tmp_path / "small"), "--device", "cpu", "--port",
             str(port), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**without_place, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "tmp"), **environment})
        started.append(process)
        until = time.monotonic() + PATIENCE / 1000
        while process.poll() is None and time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex((LOOPBACK, port)) == 0:
                    break
            time.sleep(0.1)
        return process, f"http://{LOOPBACK}:{port}"
    yield start
    for process in started:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    """Processes that a process has started, where the system tells."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()] \
        if tasks.exists() else []


def has_ended(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("kept", [False, True])
def test_a_stop_clears_up(program: Callable, tmp_path: Path, kept: bool) -> None:
    """Neither files of visitors nor the process that decodes them; a place that was asked for is used, and stays."""
    place = tmp_path / "place" if kept else tmp_path / "tmp"
    process, address = program("--max_seconds", "0.001", **({"GRADIO_TEMP_DIR": str(place)} if kept else {}))

    async def use() -> None:
        async with visiting(address) as visitor:
            file = await visitor.upload("x.png", png())
            assert Path(file["path"]).is_relative_to(place) and place != Path(file["path"]).parent.parent
            assert Path(file["path"]).parent.parent.stat().st_mode & 0o777 == 0o700
            assert is_one_line(plain((await visitor.restore(file))[STATUS]), "stopped after 0.001 s")
    run(use())
    decoders = children(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE / 1000) == 128 + signal.SIGTERM
    assert process.stderr.read().splitlines()[-1] == "app.py: stopped"
    assert not [path for path in place.iterdir() if path.name.startswith("varsr")]
    assert not list((tmp_path / "tmp").glob("varsr*"))
    until = time.monotonic() + PATIENCE / 1000
    while not all(map(has_ended, decoders)) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(map(has_ended, decoders))


def test_flags_that_fit_no_file_are_refused(program: Callable) -> None:
    process, _ = program("--max_disk", "10", "--max_megabytes", "20")
    assert process.wait(PATIENCE / 1000) == 1
    assert process.stderr.read() == "app.py: --max_disk 10 has no room for a file of --max_megabytes 20\n"


@pytest.fixture()
def open_page(browser, server: str) -> Iterator[Callable]:
    """Opens the page, in one browser for all."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(PATIENCE)

    def opened():
        tab = context.new_page()
        tab.goto(server)
        expect(tab.locator("#status")).to_contain_text("Drop a picture", timeout=PATIENCE)
        return tab
    expect = pytest.importorskip("playwright.sync_api").expect
    yield opened
    context.close()


def upload(tab, expect, path: Path) -> None:
    tab.set_input_files("#source input[type=file]", path)
    expect(tab.locator("#status")).to_contain_text(f"{path.name}: ", timeout=PATIENCE)


def test_in_the_browser_a_bad_seed_then_a_good_one(open_page: Callable, tmp_path: Path) -> None:
    from playwright.sync_api import expect
    (tmp_path / "__a_b__.png").write_bytes(png())
    tab = open_page()
    upload(tab, expect, tmp_path / "__a_b__.png")
    expect(tab.locator("#status")).to_have_text("__a_b__.png: 5x4 pixels, 8 bits")  # not in bold
    seed = tab.get_by_label("Seed").first
    for value, said in (("-1", "⚠ seed -1 is out of range"), ("99999999999", "⚠ seed 99999999999 is out of range"),
                        ("3", "✔ __a_b___x4.png: 5x4 to 20x16")):
        seed.fill(value)
        seed.press("Tab")
        tab.locator("#run").click()
        expect(tab.locator("#status")).to_contain_text(said, timeout=PATIENCE)
    expect(tab.locator("#slider")).to_be_visible()


def test_two_tabs_of_a_browser_are_two_sessions(open_page: Callable, tmp_path: Path) -> None:
    from playwright.sync_api import expect
    (tmp_path / "small.png").write_bytes(png())
    first, second = open_page(), open_page()
    for tab in (first, second):
        upload(tab, expect, tmp_path / "small.png")
        tab.get_by_label("number input for Scale").fill("16")
        tab.get_by_label("number input for Scale").press("Enter")
    first.locator("#run").click()
    second.locator("#cancel").click()
    second.locator("#run").click()
    for tab in (first, second):
        expect(tab.locator("#status")).to_contain_text("5x4 to 80x64", timeout=PATIENCE)


def test_markup_in_a_field_is_text(open_page: Callable, tmp_path: Path) -> None:
    from playwright.sync_api import expect
    (tmp_path / "small.png").write_bytes(png())
    tab = open_page()
    upload(tab, expect, tmp_path / "small.png")
    tab.get_by_role("button", name="More settings").click()
    text = "**x** <img src=http://x.example/y> [a](http://b)"
    guidance = tab.get_by_label("Guidance").first
    guidance.click()
    guidance.press_sequentially(text)
    guidance.press("Tab")
    tab.locator("#run").click()
    expect(tab.locator("#status")).to_contain_text("⚠ guidance '**x** <img", timeout=PATIENCE)
    assert tab.locator("#status").locator("img, a, strong").count() == 0


def test_a_page_that_is_closed_ends_its_jobs(open_page: Callable, server: str, tmp_path: Path) -> None:
    """Both that which works and that which waits; the next visitor need not wait for them."""
    from playwright.sync_api import expect
    (tmp_path / "large.png").write_bytes(png(50, 60))
    tabs = [open_page(), open_page()]
    for tab in tabs:
        upload(tab, expect, tmp_path / "large.png")
        tab.locator("#run").click()
        expect(tab.locator("#status")).to_contain_text(re.compile("window|waiting"), timeout=PATIENCE)
    for tab in reversed(tabs):
        tab.close()

    async def nothing(visitor: Visitor, file: dict) -> None:
        assert plain((await visitor.restore(file))[STATUS]).startswith("✔")
    visit(server, nothing)
