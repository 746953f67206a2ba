"""What reaches gradio: the requests that the page makes of it and no others, from the page itself, of bounded size.

gradio has more to offer than this page needs: it fetches addresses for whoever asks, serves whatever lies in several
folders, stores recordings and links, and speaks to a hub. Nothing of that is let through.
"""
from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread

from utils.errors import UserError

from .uploads import Uploads, is_upload

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]

API = "/gradio_api/"
SESSION = re.compile(r"[A-Za-z0-9-]{1,64}")
SHOWN = re.compile(r"/(|config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static)/.*)")
ASKED = re.compile(API + r"(info/?|startup-events|app_id/?|queue/(data|status)|heartbeat/[^/]+|call/\w+/\w+)")
FILE = API + "file="
UPLOAD = API + "upload"
FILE_META = {"_type": "gradio.FileData"}  # by which gradio knows a file
SENT = re.compile(API + r"(queue/join|(run|call)/\w+/?|cancel|reset/?)")
MAX_JSON = 2 ** 20  # bytes of a request that is no upload
MAX_DEPTH = 16  # of what is nested in it
FORM_BYTES = 2 ** 14  # of an upload around the file
CLICKED = "clicked"  # what the state of a request says of when it came
MAX_DRAINED = 2 ** 30  # bytes of a refused request that are taken before it is answered
IDLE_SECONDS = 30.0  # that a request may keep us waiting for its next bytes


def clicked_at(request: Any) -> int:
    """When a request came (`time.monotonic_ns`), as gradio hands it to a function: it may begin with it much later."""
    return request.request.scope["state"][CLICKED]


class Refused(Exception):
    """A request that is not let through: the HTTP status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Gate:
    """ASGI middleware. max_file: bytes of one upload."""

    def __init__(self, app: Callable, uploads: Uploads, max_file: int) -> None:
        self.app, self.uploads, self.max_file = app, uploads, max_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, connection or lifespan."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            incoming = _Incoming(receive)
            try:
                await self._pass(scope, incoming, send)
            except Refused as refusal:
                await incoming.drain()
                await _answer(send, refusal)

    async def _pass(self, scope: Scope, incoming: _Incoming, send: Send) -> None:
        path, headers = scope["path"], _headers(scope)
        _require_own_page(scope["method"], headers)
        if scope["method"] in ("GET", "HEAD"):
            self._require_known(path, scope["query_string"])
            await self.app(scope, incoming, send)
        elif scope["method"] == "POST" and path == UPLOAD:
            await self._upload({**scope, "query_string": b""}, incoming, send, headers)
        elif scope["method"] == "POST" and SENT.fullmatch(path):
            scope.setdefault("state", {})[CLICKED] = time.monotonic_ns()
            body = self._checked(await incoming.whole(MAX_JSON))
            await self.app(_with_length(scope, len(body)), _once(body, incoming), send)
        else:
            raise Refused(404, "there is no such thing here")

    def _require_known(self, path: str, query: bytes) -> None:
        """A page, a part of it, a message, or a file that was uploaded or made; sessions as gradio names them."""
        if path.startswith(FILE):
            if not is_upload(self.uploads.folder, path[len(FILE):]):
                raise Refused(404, "there is no such file here")
        elif not SHOWN.fullmatch(path) and not ASKED.fullmatch(path):
            raise Refused(404, "there is no such thing here")
        sessions = parse_qs(query.decode("latin-1")).get("session_hash", [])
        if path.startswith(API + "heartbeat/"):
            sessions.append(path.rpartition("/")[2])
        for session in sessions:
            _require_session(session)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        """An upload of a known length. Its query is left out: of every number in it gradio would keep a record."""
        length = headers.get("content-length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(411, "an upload must say how long it is")
        size = int(length)
        if size > self.max_file + FORM_BYTES:
            raise Refused(413, f"the file is too large: at most {self.max_file / 1e6:g} MB are taken")
        try:
            await anyio.to_thread.run_sync(self.uploads.expect, size)
        except UserError as error:
            raise Refused(507, str(error)) from error
        try:
            await self.app(scope, receive, send)
        finally:
            self.uploads.done(size)

    def _checked(self, body: bytes) -> bytes:
        """A request in JSON, written anew so that nobody reads anything else in it."""
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the request is not in JSON") from error
        if not isinstance(request, dict):
            raise Refused(400, "the request is not an object in JSON")
        if request.get("session_hash") is not None:
            _require_session(request["session_hash"])
        self._require_own_files(request)
        return json.dumps(request).encode()

    def _require_own_files(self, request: object) -> None:
        """No file but those uploaded here, wherever it is mentioned: gradio would fetch an address. Of what is said of
        it nothing but its path is left."""
        level = [request]
        for _ in range(MAX_DEPTH):
            for value in level:
                if isinstance(value, dict) and "path" in value:
                    if not is_upload(self.uploads.folder, value["path"]):
                        raise Refused(400, "a file is not one that was uploaded here: upload it first")
                    path = value["path"]
                    value.clear()
                    value.update(path=path, meta=dict(FILE_META))
            level = [inner for value in level for inner in _inside(value)]
            if not level:
                return
        raise Refused(400, "the request is nested too deeply")


def _inside(value: object) -> list | tuple:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _require_session(session: object) -> None:
    if not isinstance(session, str) or not SESSION.fullmatch(session):
        raise Refused(400, "a session's name has at most 64 letters, digits and dashes")


def _require_own_page(method: str, headers: dict[str, str]) -> None:
    """Not a page of another site that a visitor's browser has open: it could act in their name.

    Browsers say where a request comes from; older ones by the address alone, which a server in front of ours may see
    under another name.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none") and (origin is not None or method == "POST")
    else:
        own = {headers.get("host"), headers.get("x-forwarded-host")}
        foreign = origin is not None and origin.partition("://")[2] not in own
    if foreign:
        raise Refused(403, "only the page itself may ask for this")


class _Incoming:
    """A request's body as it comes: nobody is waited for for ever. Once all has come, the end of the connection is."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.is_complete = receive, False

    async def __call__(self) -> Message:
        if self.is_complete:
            return await self.receive()
        with anyio.move_on_after(IDLE_SECONDS):
            message = await self.receive()
            self.is_complete = not message.get("more_body")
            return message
        self.is_complete = True
        raise Refused(408, "the request has stopped coming")

    async def whole(self, most: int) -> bytes:
        """All of it. Raises Refused where it is longer than that many bytes."""
        parts, length = [], 0
        while not self.is_complete:
            message = await self()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request is incomplete")
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > most:
                raise Refused(413, f"the request is too long: at most {most} bytes are taken")
        return b"".join(parts)

    async def drain(self) -> None:
        """Let the rest come and go: whoever sends does not listen yet, and would take an end for a fault."""
        left = MAX_DRAINED
        with suppress(Refused):
            while left > 0 and not self.is_complete:
                left -= len((await self()).get("body", b""))


def _once(body: bytes, receive: Receive) -> Receive:
    """A body that has been read already, then what else comes."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return rest.pop() if rest else await receive()
    return next_message


def _with_length(scope: Scope, length: int) -> Scope:
    headers = [(name, value) for name, value in scope["headers"]
               if name.lower() not in (b"content-length", b"content-type", b"content-encoding")]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode()),
                                 (b"content-type", b"application/json")]}


async def _answer(send: Send, refusal: Refused) -> None:
    body = json.dumps({"detail": refusal.reason}).encode()
    await send({"type": "http.response.start", "status": refusal.status,
                "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                            (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
