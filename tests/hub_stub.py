"""A hub on this machine: repositories in memory, what huggingface_hub asks for when it uploads and downloads."""
from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
LARGE = 1000  # bytes from which a file counts as a large one, with a SHA-256


@dataclass
class HubStub:
    """Files by repository and path, what was asked, and how downloads are to fail."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)  # Range headers of downloads
    cut_after: int | None = None  # bytes after which the next download breaks off
    is_gone_after_cut: bool = False  # whether it then refuses to go on
    token: str | None = None
    endpoint: str = ""

    def etag(self, content: bytes) -> str:
        """As the hub gives it: SHA-256 of large files, git's SHA-1 of others."""
        if len(content) >= LARGE:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

    def tree(self, repo: str) -> list[dict[str, object]]:
        """The list of a repository's files."""
        entries = []
        for path, content in self.repos[repo].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": self.etag(content)}
            if len(content) >= LARGE:
                entry |= {"oid": "0" * 40, "lfs": {"oid": self.etag(content), "size": len(content),
                                                  "pointerSize": 130}}
            entries.append(entry)
        return entries

    def commit(self, repo: str, body: bytes) -> None:
        """Take the files of a commit."""
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                value = operation["value"]
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])


@contextmanager
def running_hub() -> Iterator[HubStub]:
    """Serve on a free port of the loopback address until the block ends."""
    stub = HubStub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

        def reply(self, content: object, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stub.asked.append(f"POST {self.path}")
            if stub.token and self.headers.get("Authorization") != f"Bearer {stub.token}":
                return self.reply({"error": "who are you"}, 401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                stub.repos.setdefault(name, {})
                return self.reply({"url": f"{stub.endpoint}/{name}", "name": name})
            if self.path == "/api/validate-yaml":
                return self.reply({"errors": [], "warnings": []})
            repo, action = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(\w+)/main.*", self.path).groups()
            if action == "preupload":
                return self.reply({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                             for file in json.loads(body)["files"]]})
            stub.commit(repo, body)
            return self.reply({"commitUrl": f"{stub.endpoint}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

        def do_GET(self) -> None:
            stub.asked.append(f"{self.command} {self.path}")
            listing = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(tree|revision)/[^?]*(\?.*)?", self.path)
            if listing and listing[1] in stub.repos:
                return self.reply(stub.tree(listing[1]) if listing[2] == "tree" else
                                  {"id": listing[1], "sha": COMMIT, "siblings": []})
            file = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)", self.path)
            if listing or not file or file[1] not in stub.repos:
                return self.reply({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            if file[2] not in stub.repos[file[1]]:
                return self.reply({"error": "none"}, 404, X_Error_Code="EntryNotFound")
            return self.send_file(stub.repos[file[1]][file[2]])

        do_HEAD = do_GET

        def send_file(self, content: bytes) -> None:
            headers = {"ETag": f'"{stub.etag(content)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if self.command == "GET":
                stub.ranges.append(self.headers.get("Range", ""))
            if asked and stub.is_gone_after_cut:
                return self.reply({"error": "gone"}, 500)
            if asked:
                start = int(asked[1])
                return self.reply(content[start:], 206, **headers,
                                  Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
            if self.command == "GET" and stub.cut_after is not None:
                self.send_response(200)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content[:stub.cut_after])
                stub.cut_after = None
                self.close_connection = True
                return None
            return self.reply(content, **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
