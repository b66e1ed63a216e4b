"""A set that is in no folder comes from the hub: here a loopback stand-in with one parquet file."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SHA = "c" * 40
FILE = "default/validation/0000.parquet"


class Hub(BaseHTTPRequestHandler):
    """Answers for the set baber/piqa alone."""

    data = b""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not path.removeprefix("/api").startswith("/datasets/baber/piqa/"):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "/revision/" in path:
            self._send(200, json.dumps({"id": "baber/piqa", "sha": SHA, "siblings": [{"rfilename": FILE}]}).encode())
        elif "/tree/" in path:
            entry = {"type": "file", "path": FILE, "size": len(self.data), "oid": "0" * 40}
            self._send(200, json.dumps([entry]).encode())
        else:
            etag = hashlib.sha256(self.data).hexdigest()
            self._send(200, self.data, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA})

    def _send(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(sets: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in (sets / "piqa.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0000.parquet")
    Hub.data = (tmp_path / "0000.parquet").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    server.shutdown()
    server.server_close()


def test_a_set_comes_from_the_hub_and_then_from_its_cache(
    hub: dict[str, str], run_cli, model_folder: Path, sets: Path
) -> None:
    words = ("eval", model_folder, "--tasks", "piqa", "--json")
    first = run_cli(*words, env=hub)
    assert first.returncode == 0, first.stderr
    local = json.loads(run_cli(*words, "--data", sets).stdout)
    assert json.loads(first.stdout)["results"] == local["results"]
    cached = run_cli(*words, env={**hub, "HF_HUB_OFFLINE": "1"})
    assert cached.returncode == 0, cached.stderr
    other = run_cli("eval", model_folder, "--tasks", "sciq", env=hub)
    assert other.returncode == 1
    assert "cannot get allenai/sciq from the hub" in other.stderr
    assert "--data DIR" in other.stderr


def test_a_hub_that_is_away_is_asked_once_for_a_family(run_cli, model_folder: Path, sets: Path, tmp_path: Path) -> None:
    """BLiMP has 67 sets: each was asked for in turn, and each waited as long."""
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
    nothing = run_cli("eval", model_folder, "--tasks", "blimp", env=env)
    assert nothing.returncode == 1
    assert "the hub cannot be reached" in nothing.stderr
    some = run_cli("eval", model_folder, "--tasks", "blimp", "--data", sets, "--limit", 1, env=env)
    assert some.returncode == 0, some.stderr
    assert "of its 67 members are there" in some.stderr
    for result in (nothing, some):
        assert result.stderr.count("from the hub\n") == 1
        assert result.stderr.count("warning: the hub cannot be reached") == 1
