"""Text from the hub and the web: pinned, file by file, through broken connections; here from a stand-in on loopback."""

import gzip
import hashlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mini_llm.data import remote
from mini_llm.data.remote import _matches, find_remote
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError

SHA = "a" * 40
TEXTS = [f"document {i} of a far place\n" * 20 for i in range(90)]
CARD = {
    "configs": [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/**/*"}]},
        {"config_name": "sample", "data_files": [{"split": "train", "path": "sample/*"}]},
    ]
}


def lines(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def parquet(texts: list[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return bytes(sink.getvalue())


class Hub(BaseHTTPRequestHandler):
    """Answers for the set some/text; the first `broken` answers end in the middle."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    broken: int
    asked: list[str]

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        type(self).asked.append(f"{self.command} {path}")
        if path.startswith("/web/"):
            return self._file(self.files[path.removeprefix("/web/")])
        if not re.fullmatch(r"(/api)?/datasets/some/text(/.*)?", path):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            found = [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in self.files.items()]
            return self._send(200, json.dumps(found).encode())
        if path.startswith("/api/"):
            names = [{"rfilename": p} for p in self.files]
            return self._send(
                200, json.dumps({"id": "some/text", "sha": SHA, "siblings": names, "cardData": CARD}).encode()
            )
        return self._file(self.files[path.partition(f"/resolve/{SHA}/")[2]])

    def _file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            end = int(asked[2]) + 1 if asked[2] else len(data)
            headers["Content-Range"] = f"bytes {asked[1]}-{end - 1}/{len(data)}"
            return self._send(206, data[int(asked[1]) : end], headers)
        return self._send(200, data, headers)

    def _send(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if "/resolve/" in self.path and type(self).broken and len(data) > 100:
            type(self).broken -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    Hub.files = {
        "README.md": b"---\n---\n",
        "data/x/0.parquet": parquet(TEXTS[:30]),
        "data/x/1.jsonl.gz": gzip.compress(lines(TEXTS[30:60])),
        "sample/0.jsonl": lines(TEXTS[60:], "body"),
        "code.py": b"print()",
    }
    Hub.broken, Hub.asked = 0, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    server.shutdown()
    server.server_close()


def store_texts(folder: Path) -> list[str]:
    from mini_llm.tokenizer.tokenizer import Tokenizer

    store = TokenStore.open(folder)
    store.verify()
    split, tokenizer = store.split("train"), Tokenizer.load(store.tokenizer_folder)
    starts = [*split.document_starts().tolist(), split.n_tokens]
    return [tokenizer.decode(split.read(a, b - a).tolist()) for a, b in itertools.pairwise(starts)]


def run(run_cli: Any, hub: dict[str, str], source: str, tokenizer: Path, out: Path, *more: object) -> Any:
    return run_cli("prepare", source, "--tokenizer", tokenizer, "--out", out, "--val-fraction", 0, *more, env=hub)


def test_a_set_of_the_hub_is_read_pinned_and_through_a_broken_connection(
    run_cli: Any, hub: dict[str, str], byte_tokenizer: Path, tmp_path: Path
) -> None:
    Hub.broken = 1
    done = run(run_cli, hub, "hf://datasets/some/text?name=default", byte_tokenizer, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert store_texts(tmp_path / "out") == TEXTS[:60]
    sources = [source.path for source in TokenStore.open(tmp_path / "out").manifest.sources]
    assert sources == [f"hf://datasets/some/text@{SHA}/data/x/{name}" for name in ("0.parquet", "1.jsonl.gz")]
    assert not list(tmp_path.glob(".out*"))


def test_a_configuration_a_column_and_a_glob_choose(
    run_cli: Any, hub: dict[str, str], byte_tokenizer: Path, tmp_path: Path
) -> None:
    sample = run(run_cli, hub, "hf://datasets/some/text?name=sample&column=body", byte_tokenizer, tmp_path / "sample")
    assert sample.returncode == 0, sample.stderr
    assert store_texts(tmp_path / "sample") == TEXTS[60:]
    glob = run(run_cli, hub, "hf://datasets/some/text@main/data/x/*.gz", byte_tokenizer, tmp_path / "glob")
    assert glob.returncode == 0, glob.stderr
    assert store_texts(tmp_path / "glob") == TEXTS[30:60]


def test_what_is_enough_ends_the_fetching(
    run_cli: Any, hub: dict[str, str], byte_tokenizer: Path, tmp_path: Path
) -> None:
    words = ("--max-tokens", 1000, "--workers", 1)
    done = run(run_cli, hub, "hf://datasets/some/text", byte_tokenizer, tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert store_texts(tmp_path / "out") == TEXTS[:30]


def test_a_stopped_reading_goes_on_without_asking_again(
    run_cli: Any, hub: dict[str, str], byte_tokenizer: Path, tmp_path: Path
) -> None:
    good = Hub.files["data/x/1.jsonl.gz"]
    Hub.files["data/x/1.jsonl.gz"] = gzip.compress(lines(TEXTS[30:60]) + b"no json\n")
    bad = run(run_cli, hub, "hf://datasets/some/text", byte_tokenizer, tmp_path / "out", "--workers", 1)
    assert bad.returncode == 1
    assert f"{SHA}/data/x/1.jsonl.gz:31: not JSON" in bad.stderr
    assert "the same command goes on from there" in bad.stderr
    Hub.files["data/x/1.jsonl.gz"], Hub.asked = good, []
    done = run(run_cli, hub, "hf://datasets/some/text", byte_tokenizer, tmp_path / "out", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert store_texts(tmp_path / "out") == TEXTS[:60]
    assert not [line for line in Hub.asked if line.endswith("0.parquet")]


def test_the_web_is_read_too_and_a_tokenizer_learns_from_it(
    run_cli: Any, hub: dict[str, str], byte_tokenizer: Path, tmp_path: Path
) -> None:
    address = f"{hub['HF_ENDPOINT']}/web/data/x/1.jsonl.gz?download=true"
    done = run(run_cli, hub, address, byte_tokenizer, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert store_texts(tmp_path / "out") == TEXTS[30:60]
    learned = run_cli("tokenizer", "train", address, "--out", tmp_path / "tok", "--vocab-size", 300, env=hub)
    assert learned.returncode == 0, learned.stderr


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("hf://datasets/some/other", 1, ["no datasets/some/other on the hub"]),
        ("hf://datasets/some/text?name=sampel", 1, ["no configuration 'sampel', did you mean 'sample'?"]),
        ("hf://datasets/some/text?split=test", 1, ["no split 'test'", "it has: train"]),
        ("hf://datasets/some/text?nmae=x", 2, ["'nmae'", "name=CONFIG"]),
        ("hf://datasets/some/text/*.csv", 1, ["no text files", "supported"]),
        ("hf://some/text", 2, ["hf://datasets/USER/NAME"]),
        ("s3://bucket/a.jsonl", 1, ["pip install s3fs"]),
        ("ftp2://x/a.jsonl", 1, ["known: hf://"]),
        ("http://127.0.0.1:9/a.jsonl", 1, ["nothing at http://127.0.0.1:9/a.jsonl"]),
    ],
)
def test_what_cannot_be_read_is_said(
    run_cli: Any, hub: dict[str, str], byte_tokenizer: Path, tmp_path: Path, source: str, code: int, words: list[str]
) -> None:
    done = run(run_cli, hub, source, byte_tokenizer, tmp_path / "out")
    assert done.returncode == code, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("data/*/*", "data/a/b.parquet", True),
        ("data/*", "data/a/b.parquet", False),
        ("data/**", "data/a/b.parquet", True),
        ("**/train-*.parquet", "train-0.parquet", True),
        ("**/train-*.parquet", "x/y/train-0.parquet", True),
        ("sample/10BT/?.parquet", "sample/10BT/3.parquet", True),
    ],
)
def test_patterns_match_as_on_the_hub(pattern: str, path: str, fits: bool) -> None:
    assert _matches(path, pattern) is fits


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(UserError, match="it cannot be reached"):
            find_remote(f"http://127.0.0.1:{silent.getsockname()[1]}/x.txt")
        assert time.monotonic() - begin < 20
