"""The hub's API on this machine's loopback, as far as pushing and pulling ask: repositories, large files, commits."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"
LARGE = (".safetensors", ".gguf")


@dataclass
class Repository:
    """What one name holds; `commits[sha]` are the files of that commit."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits.get(self.head, {})


class FakeHub:
    """Its repositories, what was sent of large files, and a gate that holds an upload until it is opened."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.gate, self.arrived = threading.Event(), threading.Event()
        self.gate.set()
        self.url = ""


@contextmanager
def run_hub() -> Iterator[FakeHub]:
    """Serve until the block ends."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._read()

    def do_HEAD(self) -> None:
        self._read()

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.arrived.set()
        self.hub.gate.wait(30)
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer({"error": "wrong bytes"}, 422)
        self.hub.large[oid] = body
        return self._answer({})

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self._body()
        self.hub.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path == "/verify":
            return self._answer({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            is_new = name not in self.hub.repositories
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories.setdefault(name, Repository(private))
            return self._answer({"url": f"{self.hub.url}/{name}", "name": name}, 200 if is_new else 409)
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = json.loads(body)["files"]
            kinds = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"} for f in files
            ]
            return self._answer({"files": [{**kind, "shouldIgnore": False, "oid": None} for kind in kinds]})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._answer({"transfer": "basic", "objects": [self._large(o) for o in json.loads(body)["objects"]]})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self._commit(found[1], body)
        return self._answer({"error": path}, 404)

    def _large(self, asked: dict[str, Any]) -> dict[str, Any]:
        actions = {
            "upload": {"href": f"{self.hub.url}/put/{asked['oid']}"},
            "verify": {"href": f"{self.hub.url}/verify"},
        }
        return {**asked, **({} if asked["oid"] in self.hub.large else {"actions": actions})}

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        repository.commits[sha], repository.head = files, sha
        self._answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def _read(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/models/(.+?)/(revision|tree)/([^/]+)", path)
        plain = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        name, revision = (api[1], api[3]) if api else (plain[1], plain[2]) if plain else ("", "")
        repository = self.hub.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            return self._answer({"error": "not found"}, 401, "RepoNotFound")
        if repository.gated and not (api and api[2] == "revision"):
            return self._answer({"error": "gated"}, 403, "GatedRepo")
        sha = repository.head if revision == "main" else revision
        if sha not in repository.commits:
            return self._answer({"error": "no revision"}, 404, "RevisionNotFound")
        files = repository.commits[sha]
        if api and api[2] == "revision":
            return self._answer({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
        if api:
            entries = [
                {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for p, b in files.items()
            ]
            return self._answer(entries)
        assert plain
        if plain[3] not in files:
            return self._answer({"error": "no entry"}, 404, "EntryNotFound")
        data = files[plain[3]]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self._send(data, 200, {"ETag": etag, "X-Repo-Commit": sha})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, values: Any, status: int = 200, code: str | None = None) -> None:
        headers = {"Content-Type": "application/json", **({"X-Error-Code": code} if code else {})}
        self._send(json.dumps(values).encode(), status, headers)

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
