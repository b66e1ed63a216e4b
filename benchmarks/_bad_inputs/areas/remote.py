"""Sources elsewhere, spoiled: a stand-in on loopback that answers as broken, busy and hostile servers do."""

from __future__ import annotations

import functools
import gzip
import json
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from _bad_inputs.case import Case
from _bad_inputs.world import GREEDY, World

TEXT = b"river stone bread quiet morning lamp walks\n" * 200
ESC = "\x1b]0;PWN\x07"
JSON_ANSWERS = {
    "empty": b"", "no json": b"<html>", "null": b"null", "a list": b"[]", "numbers": b"{\"choices\": 7, \"data\": 7}",
    "no choice": b"{\"choices\": [], \"data\": [], \"siblings\": []}", "deep": b"[" * 50_000, "cut": b"{\"choices\": [",
    "escapes": json.dumps({"error": {"message": ESC}, "choices": [{"message": {"content": ESC}}], "sha": ESC}).encode(),
    "another kind": b"{\"choices\": [{\"message\": null, \"logprobs\": 3}], \"data\": [{}], \"sha\": 5}",
    "a long number": b"{\"choices\": " + b"9" * 5000 + b"}", "latin": b"{\"choices\": \"\xff\"}",
}  # fmt: skip
STATUSES = (204, 301, 304, 400, 401, 403, 404, 418, 429, 500, 503)
KINDS = ("sound", "short", "chunked", "no length", "endless length", "wrong length", "reset", "no http", "loop", "away",
         "to a file", "escapes", "a web page", "not gzip", "half gzip", "silent", "empty")  # fmt: skip

ODD = ["https://", "http://[::1", "s3://", "gs://x", "ftp://127.0.0.1/x.txt", "memory://x.txt", "file:///etc/passwd"]
ODD += ["https://127.0.0.1:1/x.txt", "HOST/sound/x.exe", "HOST/sound/*.txt", f"HOST/{ESC}/x.txt", "hf://datasets/"]
ODD += ["hf://datasets/a", "hf://datasets/a/b?x=1", "hf://datasets/a/b@/", "hf://spaces/a/b"]


class Hostile(BaseHTTPRequestHandler):
    """Answers in the way that the first part of the path names."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def do_GET(self) -> None:
        kind = self.path.split("/")[1].replace("_", " ")
        if kind.isdigit():
            self._send(int(kind), b"nothing here " + ESC.encode())
        elif kind in JSON_ANSWERS:
            self._send(200, JSON_ANSWERS[kind], {"Content-Type": "application/json"})
        elif kind == "silent":
            time.sleep(600)
        elif kind == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif kind == "no http":
            self.wfile.write(b"\x00\xff" * 500)
            self.close_connection = True
        elif kind in ("loop", "away", "to a file"):
            where = {"loop": self.path, "away": "http://127.0.0.1:9/x.txt", "to a file": "file:///etc/passwd"}[kind]
            self._send(302, b"", {"Location": where})
        elif kind == "chunked":
            self._send(200, b"5\r\nriver\r\nzz\r\n", {"Transfer-Encoding": "chunked"}, length=None)
        else:
            self._file(kind)

    def _file(self, kind: str) -> None:
        packed = gzip.compress(TEXT)
        data = {"a web page": b"<!DOCTYPE html><p>Log in", "not gzip": TEXT, "half gzip": packed[:60], "empty": b""}
        length: Any = {"no length": None, "endless length": 10**15, "wrong length": "x", "short": len(TEXT) + 9}
        headers = {"X-Note": ESC, "ETag": ESC} if kind == "escapes" else {}
        body = data.get(kind, packed if self.path.endswith(".gz") else TEXT)
        self._send(200, body, headers, length=length.get(kind, len(body)))

    def _send(self, code: int, data: bytes, headers: dict[str, str] | None = None, length: Any = 0) -> None:
        self.send_response(code)
        length = len(data) if length == 0 else length
        for name, value in {**(headers or {}), "Content-Length": length}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        if length != len(data):
            self.close_connection = True


class Quiet(ThreadingHTTPServer):
    """Says nothing of connections that break: they are meant to."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...


@functools.cache
def _address() -> str:
    server = Quiet(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    address, found = _address(), []

    def add(name: str, words: list[str], needs: tuple[str, ...], **more: Any) -> None:
        def make(folder: Any) -> None:
            world.bring(folder, *needs)
            (folder / "typed").write_bytes(b"hello\n/exit\n")

        env = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1"}
        env |= more.pop("env", {})
        found.append(Case("remote", name, words, make, env=env, **{"deadline": 100.0, **more}))

    for kind in (*KINDS, *map(str, STATUSES)):
        way = kind.replace(" ", "_")
        for end in ("x.txt", "x.jsonl", "x.txt.gz", "x.parquet") if kind in ("sound", "escapes") else ("x.txt.gz",):
            url = f"{address}/{way}/{end}"
            add(f"prepare {kind} {end}", ["prepare", url, "--tokenizer", "tok", "--out", "out"], ("tok",))
        add(f"tokenizer train {kind}", ["tokenizer", "train", url, "--out", "out", "--vocab-size", "400"], ())
        add(f"clean {kind}", ["clean", url, "--out", "out", "--workers", "1"], ())
    for kind in (*JSON_ANSWERS, *KINDS, *map(str, STATUSES)):
        way = kind.replace(" ", "_")
        base = f"{address}/{way}"
        if kind != "silent":  # a model that reads a long prompt is silent too: minutes are waited
            add(f"chat --url {kind}", ["chat", "--url", base, *GREEDY[:4]], (), stdin="typed")
            add(f"eval {kind}", ["eval", base, "--text", "corpus/d00.txt", "--out", "out"], ("corpus",))
        hub = {"HF_ENDPOINT": base, "HF_HUB_OFFLINE": "0"}
        add(f"pull {kind}", ["pull", "some/model", "--out", "out"], (), env=hub)
        add(f"push {kind}", ["push", "model", "some/model"], ("model",), env={**hub, "HF_TOKEN": "hf_x"})
        words = ["prepare", "hf://datasets/some/text", "--tokenizer", "tok", "--out", "out"]
        add(f"prepare hf:// {kind}", words, ("tok",), env=hub)
        add(f"generate hf:// {kind}", ["generate", "hf://some/model", "--prompt", "a"], (), env=hub)
    for odd in ODD:
        url = odd.replace("HOST", address)
        add(f"prepare {odd!r}", ["prepare", url, "--tokenizer", "tok", "--out", "out"], ("tok",))
    return found
