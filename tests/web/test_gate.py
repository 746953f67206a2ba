"""Requests at the gate, before gradio sees them: which pass, as what, and what the others are told."""
from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from loops import run

pytest.importorskip("anyio", reason="NOTICE: no test of the web page without gradio")
from web import gate as module
from web.gate import Gate
from web.uploads import Uploads

HOST = (b"host", b"page.example:7860")
API = "/gradio_api"


class Inner:
    """What stands for gradio: keeps what reaches it."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] | None = None
        self.body = b""

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        self.scope = scope
        more = scope["type"] == "http"
        while more:
            message = await receive()
            self.body += message["body"]
            more = message["more_body"]
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})


class Door:
    """A gate with one uploaded file behind it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / ("a" * 64) / "x.png"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(b"")
        self.inner = Inner()
        self.uploads = Uploads(folder, 10 ** 6)
        self.gate = Gate(self.inner, self.uploads, 10 ** 5)

    def ask(self, method: str, path: str, *parts: bytes, query: bytes = b"",
            headers: tuple[tuple[bytes, bytes], ...] = (), stalls: bool = False) -> tuple[int, str]:
        """Status and reason for a request."""
        sent: list[dict] = []
        coming = [{"type": "http.request", "body": part, "more_body": number < len(parts) - 1 or stalls}
                  for number, part in enumerate(parts or (b"",))]

        async def receive() -> dict:
            return coming.pop(0) if coming else await asyncio.sleep(3600)

        async def send(message: dict) -> None:
            sent.append(message)
        scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": [HOST, *headers]}
        self.inner.scope, self.inner.body = None, b""
        run(self.gate(scope, receive, send))
        body = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], json.loads(body)["detail"] if body else ""

    def post(self, request: object, **options: Any) -> tuple[int, str]:
        """The same for a step of the page."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        return self.ask("POST", f"{API}/queue/join", body, **options)


@pytest.fixture()
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "uploads")


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/index.js", "/static/fonts/a.woff2",
                                  f"{API}/info", f"{API}/startup-events", f"{API}/queue/data", f"{API}/heartbeat/abc1",
                                  f"{API}/call/restore/0123abc"])
def test_what_the_page_is_made_of_passes(door: Door, path: str) -> None:
    assert door.ask("GET", path) == (200, "") and door.inner.scope["path"] == path


@pytest.mark.parametrize("method, path", [
    *(("GET", path) for path in (
        f"{API}/proxy=http://huggingface.co/x", f"{API}/proxy=https://a.hf.space/x", f"{API}/file=http://huggingface.co/x",
        f"{API}/file=https://127.0.0.1/x", f"{API}/file=/etc/passwd", f"{API}/file=", f"{API}/file=../config.json",
        f"{API}/file/etc/passwd", f"{API}/runs", f"{API}/run-history/buckets", f"{API}/deep_link", f"{API}/vibe-code",
        f"{API}/dev/reload", f"{API}/upload_progress", f"{API}/stream/a/b/1/playlist.m3u8", "/monitoring",
        "/monitoring/summary", f"{API}/custom_component/a/client/b/c", "/docs", "/openapi.json",
        f"{API}/openapi.json", "/login", "/logout")),
    *(("POST", path) for path in (
        "/", "/login", f"{API}/component_server", f"{API}/process_recording", f"{API}/stream/1", f"{API}/vibe-edit",
        f"{API}/run-history/connect", f"{API}/call/v2/restore", f"{API}/upload/", "/queue/join")),
    ("PUT", "/"), ("DELETE", f"{API}/upload"), ("OPTIONS", "/"), ("TRACE", "/")])
def test_whatever_else_gradio_offers_does_not(door: Door, method: str, path: str) -> None:
    status, reason = door.ask(method, path, b"{}")
    assert status == 404 and reason.startswith("there is no such") and door.inner.scope is None


def test_files_are_given_out_that_were_uploaded(door: Door) -> None:
    assert door.ask("GET", f"{API}/file={door.file}")[0] == 200
    assert door.ask("GET", f"{API}/file={door.file.parent}")[0] == 404


def test_no_connection_but_for_requests(door: Door) -> None:
    sent = []

    async def send(message: dict) -> None:
        sent.append(message["type"])
    run(door.gate({"type": "websocket", "path": "/"}, None, send))
    assert sent == ["websocket.close"] and door.inner.scope is None
    run(door.gate({"type": "lifespan"}, None, send))
    assert door.inner.scope == {"type": "lifespan"}


def test_a_step_passes_as_it_was_checked_and_with_its_time(door: Door) -> None:
    file = {"path": str(door.file), "url": "http://127.0.0.1/x", "size": "x", "meta": 5}
    assert door.post({"data": [file, [1, {"a": file}], float("inf"), "é\ud800"], "session_hash": "a-1"}) == (200, "")
    known = {"path": str(door.file), "meta": {"_type": "gradio.FileData"}}
    assert json.loads(door.inner.body) == {"data": [known, [1, {"a": known}], float("inf"), "é\ud800"],
                                           "session_hash": "a-1"}
    assert dict(door.inner.scope["headers"])[b"content-length"] == str(len(door.inner.body)).encode()
    first = door.inner.scope["state"][module.CLICKED]
    assert door.ask("POST", f"{API}/run/cancel", b'{"da', b'ta": []}') == (200, "")
    assert door.inner.scope["state"][module.CLICKED] > first and json.loads(door.inner.body) == {"data": []}


@pytest.mark.parametrize("body, reason", [
    (b"", "not in JSON"), (b"\xff", "not in JSON"), (b"[]", "not an object"), (b"5", "not an object"),
    (b"{", "not in JSON"), (b"[" * 10 ** 5, "not in JSON"), (b'{"data":' + b"[" * 50 + b"]" * 50 + b"}", "too deeply"),
    (b'{"data": ' + b"9" * 5000 + b"}", "not in JSON"), (b'{"session_hash": "../x"}', "session"),
    (b'{"session_hash": "a_1"}', "session"), (b'{"session_hash": 5}', "session"),
    (b'{"session_hash": "' + b"a" * 65 + b'"}', "session"), (b" " * (module.MAX_JSON + 1), "too long")])
def test_requests_that_are_none_are_refused(door: Door, body: bytes, reason: str) -> None:
    status, said = door.post(body)
    assert status in (400, 413) and reason in said and "\n" not in said
    assert door.inner.scope is None


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/x.png", "https://huggingface.co/x.png", "/etc/passwd", "", 5,
                                  None, [], {"path": "x"}, "data:image/png;base64,AA", "app.py"])
@pytest.mark.parametrize("place", [lambda file: [file], lambda file: [[{"value": file}]], lambda file: file])
def test_files_that_were_not_uploaded_are_refused(door: Door, path: object, place: Any) -> None:
    """Wherever they are mentioned: gradio looks for them anywhere, and fetches addresses."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    status, reason = door.post({"data": place(file)})
    assert status == 400 and "upload it first" in reason and door.inner.scope is None


def upload(door: Door, size: int | str, **options: Any) -> tuple[int, str]:
    headers = ((b"content-length", str(size).encode()),) if size != "" else ()
    return door.ask("POST", f"{API}/upload", b"x", b"y", query=b"upload_id=1", headers=headers, **options)


def test_uploads_have_a_length_and_a_bound(door: Door) -> None:
    assert upload(door, 2) == (200, "") and door.inner.body == b"xy"
    assert door.inner.scope["query_string"] == b""  # gradio would remember it for ever
    for size in ("", "-1", "1e9", "²"):
        assert upload(door, size)[0] == 411
    assert upload(door, 10 ** 6) == (413, "the file is too large: at most 0.1 MB are taken")
    door.uploads.max_bytes = 10
    status, reason = upload(door, 100)
    assert status == 507 and "no room" in reason


def test_an_upload_that_stops_is_given_up(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
    assert upload(door, 100, stalls=True)[0] == 408
    assert door.post(b"{", stalls=True)[0] == 408
    assert door.uploads._coming == 0


@pytest.mark.parametrize("headers", [
    {b"origin": b"http://evil.example"}, {b"origin": b"null"}, {b"origin": b"http://page.example:80"},
    {b"origin": b"http://["}, {b"sec-fetch-site": b"cross-site"},
    {b"sec-fetch-site": b"same-site", b"origin": b"http://page.example:1"}])
def test_other_sites_may_not_ask(door: Door, headers: dict[bytes, bytes]) -> None:
    assert door.post({"data": []}, headers=tuple(headers.items()))[0] == 403
    if b"origin" in headers:
        assert door.ask("GET", "/config", headers=tuple(headers.items()))[0] == 403
    assert door.inner.scope is None


@pytest.mark.parametrize("headers", [
    {}, {b"origin": b"http://page.example:7860"}, {b"origin": b"https://public", b"sec-fetch-site": b"same-origin"},
    {b"origin": b"https://public", b"x-forwarded-host": b"public"}])
def test_the_page_itself_may(door: Door, headers: dict[bytes, bytes]) -> None:
    assert door.post({"data": []}, headers=tuple(headers.items())) == (200, "")


def test_a_link_on_another_site_leads_to_the_page(door: Door) -> None:
    assert door.ask("GET", "/", headers=((b"sec-fetch-site", b"cross-site"),)) == (200, "")


@pytest.mark.parametrize("path, query", [("/gradio_api/queue/data", b"session_hash=a%2Fb"),
                                         ("/gradio_api/queue/data", b"session_hash=a&session_hash=%3Cgradio-sep%3E"),
                                         ("/gradio_api/heartbeat/a b", b"")])
def test_sessions_have_plain_names(door: Door, path: str, query: bytes) -> None:
    assert door.ask("GET", path, query=query)[0] == 400
