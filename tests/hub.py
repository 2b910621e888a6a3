"""A Hugging Face Hub on this machine: as much of its API as its own clients ask for to find and read data sets."""

import json
import re
import threading
import urllib.parse
from collections import Counter
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = sha1(b"the one revision").hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves `root/OWNER/NAME/...`; of each kind of question so many are first answered by 503."""

    def __init__(self, root: Path, **failing: int) -> None:
        self.root, self.failing = root, Counter(failing)
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """A client that went away is no matter of the test's."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def do_GET(self) -> None:
        self._answer()

    def _answer(self, body: str = "") -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/[^/]+/?(.*))?", path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        found = api or file
        kind = (api[2] or "info") if api else "resolve" if file else "others"
        if self.server.failing[kind] > 0:
            self.server.failing[kind] -= 1
            self._send(503, {})
        elif not found or not (self.server.root / found[1]).is_dir():
            self._send(404, {"X-Error-Code": "RepoNotFound"})
        elif file:
            self._file(self.server.root / file[1] / file[2])
        elif api and api[2] == "tree":
            self._json([self._entry(api[1], one) for one in sorted((self.server.root / api[1] / api[3]).rglob("*"))])
        elif api and api[2] == "paths-info":
            asked = urllib.parse.parse_qs(body).get("paths") or json.loads(body)["paths"]
            there = [self.server.root / api[1] / one for one in asked]
            self._json([self._entry(api[1], one) for one in there if one.exists()])
        elif api:
            about = {"id": api[1], "sha": SHA, "private": False, "gated": False, "downloads": 0, "tags": [], "likes": 0}
            self._json(about | {"siblings": [], "lastModified": "2026-01-01T00:00:00.000Z"})

    def _entry(self, repo: str, path: Path) -> dict:
        name = str(path.relative_to(self.server.root / repo))
        if path.is_dir():
            return {"type": "directory", "oid": SHA, "size": 0, "path": name}
        return {"type": "file", "oid": sha1(path.read_bytes()).hexdigest(), "size": path.stat().st_size, "path": name}

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
            return
        content = path.read_bytes()
        about = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or 10**12), len(content) - 1)
            about["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self._send(206 if wanted else 200, about, content)

    def _json(self, values: object) -> None:
        self._send(200, {"Content-Type": "application/json", "X-Repo-Commit": SHA}, json.dumps(values).encode())

    def _send(self, code: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
