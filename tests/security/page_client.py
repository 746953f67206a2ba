"""A visitor of the page who has no browser: sessions, uploads and jobs over HTTP alone, good manners or not."""
from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

API = "/gradio_api"
# Fields of the tab of super-resolution as the page has them, behind the picture and the model's name.
SETTINGS = {"scale": 4, "seed": 0, "fidelity": 0, "cfg": "", "color_fix": "wavelet", "overlap": 0.25, "fast": False,
            "fastvar": False, "second_last": 0.4, "last": 0.3, "kind": "auto", "errors": False,
            "dial": ""}
STATUS, RESULT = 0, 3  # places among the outputs


def plain(status: object) -> str:
    """A line of the page without the marks that keep Markdown from reading it."""
    return re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", status) if isinstance(status, str) else ""


class Visitor:
    """One session. steps: numbers of the page's functions by name; models: the first ones of both tabs."""

    def __init__(self, http: httpx.AsyncClient, config: dict[str, Any], session: str | None = None) -> None:
        self.http, self.session = http, session or uuid.uuid4().hex
        self.steps = {step["api_name"]: step["id"] for step in config["dependencies"]}
        self.models = [one["props"]["value"] for one in config["components"] if one["props"].get("label") == "Model"]

    async def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """Upload a file; what a field would hold then."""
        answer = await self.http.post(f"{API}/upload", files={"files": (name, data)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    async def post(self, step: str, data: list[Any], **more: Any) -> httpx.Response:
        """Ask for a step of the page, without waiting for its end."""
        body = {"data": data, "fn_index": self.steps[step], "session_hash": self.session, **more}
        return await self.http.post(f"{API}/queue/join", content=json.dumps(body),
                                    headers={"content-type": "application/json"})

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """What the server tells this session, until nothing of it runs or waits."""
        async with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    message = json.loads(line[6:])
                    if message["msg"] == "close_stream":
                        return
                    yield message

    async def ends(self) -> dict[str, dict[str, Any]]:
        """How every event of the session ended: the last message of each by its number."""
        return {message["event_id"]: message async for message in self.messages()
                if message["msg"] == "process_completed"}

    async def ask(self, step: str, data: list[Any]) -> list[Any]:
        """The outputs of a step in the end; [] where gradio has none."""
        event = (await self.post(step, data)).raise_for_status().json()["event_id"]
        end = (await self.ends())[event]
        return end["output"].get("data") or [] if end["success"] else []

    def fields(self, file: object, **settings: object) -> list[Any]:
        """What the page sends when *Restore* is pressed."""
        return [file, settings.pop("model", self.models[0]), *{**SETTINGS, **settings}.values()]

    async def restore(self, file: object, **settings: object) -> list[Any]:
        """The outputs of a job in the end."""
        return await self.ask("restore", self.fields(file, **settings))

    async def cancel(self) -> None:
        """Press *Cancel*."""
        body = {"data": [], "fn_index": self.steps["cancel"], "session_hash": self.session}
        (await self.http.post(f"{API}/run/cancel", json=body)).raise_for_status()

    async def download(self, outputs: list[Any]) -> bytes:
        """The file of a result."""
        path = outputs[RESULT]["value"]["path"]
        return (await self.http.get(f"{API}/file={path}")).raise_for_status().content


@asynccontextmanager
async def visiting(address: str) -> AsyncIterator[Visitor]:
    """A new session."""
    async with httpx.AsyncClient(base_url=address, timeout=120, verify=False) as http:
        yield Visitor(http, (await http.get("/config")).raise_for_status().json())
