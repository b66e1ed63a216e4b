"""What the server refuses, so that it may run on a laptop: each line a way in that others have left open."""

import contextlib
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from running_server import RunningServer, StartServer

KEY = "a-secret-of-ours"
BODY = {"prompt": "x", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked(start_server: StartServer, model_folder: Path) -> RunningServer:
    return start_server(model_folder, "--cors-origin", "https://friend.example", "--allowed-host", "my.box",
                        env={"MINI_LLM_API_KEY": KEY})  # fmt: skip


def raw(server: RunningServer, data: bytes, seconds: float = 20) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(seconds)
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_other_machines_need_a_key(run_cli, model_folder: Path) -> None:
    refused = run_cli("serve", model_folder, "--host", "0.0.0.0", "--port", 0, env={"MINI_LLM_API_KEY": ""})
    assert refused.returncode == 2
    assert "--no-key" in refused.stderr


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--cors-origin", "*"), ("--cors-origin", "https://notes.example/"), ("--cors-origin", "notes.example"),
        ("--allowed-host", "https://models.example"), ("--allowed-host", "models.example:8080"),
    ],
)  # fmt: skip
def test_a_name_that_no_browser_sends_lets_nobody_in_and_is_refused(run_cli, model_folder, option, word) -> None:
    refused = run_cli("serve", model_folder, option, word)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert word in refused.stderr


def test_a_key_file_must_be_its_owners_alone(run_cli, model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    for text, mode, word in ((KEY, 0o644, "chmod 600"), ("", 0o600, "empty")):
        file.write_text(text)
        file.chmod(mode)
        refused = run_cli("serve", model_folder, "--port", 0, "--api-key-file", file)
        assert refused.returncode == 1
        assert word in refused.stderr
    missing = run_cli("serve", model_folder, "--port", 0, "--api-key-file", tmp_path / "none")
    assert missing.returncode == 1


def test_the_key_covers_all_but_health_and_the_page(locked: RunningServer) -> None:
    assert locked.client.get("/health").status_code == 200
    assert locked.client.get("/").status_code == 200
    for path in ("/v1/models", "/metrics", "/run", "/run/metrics", "/tokenizer_info", "/openapi.json"):
        assert locked.client.get(path).status_code == 401
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize", "/inspect"):
        assert locked.client.post(path, json=BODY).status_code == 401
    for wrong in ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer é"):
        headers = {"authorization": wrong.encode()}
        assert locked.client.get("/v1/models", headers=headers).status_code == 401
    assert locked.client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    assert locked.client.get(f"/v1/models?key={KEY}").status_code == 401
    assert KEY not in locked.log.read_text()


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:80", 200), ("localhost", 200), ("[::1]:8000", 200), ("my.box:1", 200), ("evil.example", 403),
     ("", 403),      ("localhost.evil.example", 403), ("a@localhost", 403)],
)  # fmt: skip
def test_only_our_own_names_are_answered_to(locked: RunningServer, host: str, status: int) -> None:
    assert locked.client.get("/health", headers={"host": host}).status_code == status


def test_a_missing_host_is_refused(locked: RunningServer) -> None:
    assert b" 400 " in raw(locked, b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n").split(b"\r\n")[0]


def test_pages_of_others_may_not_ask(server: RunningServer, locked: RunningServer) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert server.client.post("/v1/completions", json=BODY, headers={"origin": own}).status_code == 200
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        refused = server.client.post("/v1/completions", json=BODY, headers=headers)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    sent_as_text = server.client.post(
        "/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": "text/plain"}
    )
    assert sent_as_text.status_code == 400
    friend = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    allowed = locked.client.options("/v1/completions", headers=friend)
    assert allowed.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in allowed.headers


def test_the_page_may_load_nothing_from_elsewhere(server: RunningServer) -> None:
    headers = server.client.get("/").headers
    for word in (
        "default-src 'none'",
        "script-src 'self'",
        "require-trusted-types-for 'script'",
        "frame-ancestors 'none'",
    ):
        assert word in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_files_beside_the_page_stay_there(server: RunningServer) -> None:
    for path in ("/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "//etc/passwd", "/page/../../app.py", "/.env"):
        answer = raw(server, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        assert b" 404 " in answer.split(b"\r\n")[0], path


@pytest.mark.parametrize("chunked", [True, False])
def test_large_bodies_are_refused(server: RunningServer, chunked: bool) -> None:
    body = b'{"prompt": "' + b"x" * 2**20 + b'"}'
    content = iter([body[:1000], body[1000:]]) if chunked else body
    with contextlib.suppress(httpx.WriteError):  # refused before all of it was sent
        response = server.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


def test_large_headers_are_refused(server: RunningServer) -> None:
    answer = raw(server, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 20_000 + b"\r\n\r\n")
    assert re.search(rb" 4(00|31) ", answer.split(b"\r\n")[0])


def test_slow_requests_are_cut_off(server: RunningServer) -> None:
    """Of nothing at all, of half a head, of half a body; at the same time, for each waits ten seconds."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    slow = [b"", b"GET /health HTTP/1.1\r\nhost: localh", head + b"content-length: 100\r\n\r\n{"]

    def seconds(begun: bytes) -> float:
        began = time.monotonic()
        raw(server, begun, seconds=30)
        return time.monotonic() - began

    with ThreadPoolExecutor(len(slow)) as pool:
        found = list(pool.map(seconds, slow))
    assert [5 < took < 20 for took in found] == [True] * 3, found


def test_connections_are_bounded(start_server: StartServer, model_folder: Path) -> None:
    server = start_server(model_folder)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(256)]
    time.sleep(0.5)
    assert b" 503 " in raw(server, b"").split(b"\r\n")[0]
    for connection in held:
        connection.close()
    time.sleep(0.5)
    assert server.client.get("/health").status_code == 200


def test_logs_hold_no_text_and_no_forged_lines(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="a very private thought", max_tokens=3)
    forged = {"x-request-id": "x\x1b[31m"}
    answer = server.client.post("/v1/completions", json=BODY, headers={k: v.encode() for k, v in forged.items()})
    assert answer.headers["x-request-id"].startswith("req-")
    assert server.client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    log = server.log.read_text()
    assert "private" not in log
    assert "\x1b" not in log
    assert "POST /v1/completions 200 " in log


def test_errors_name_no_path_and_no_trace(start_server: StartServer, tokenizer, tmp_path: Path) -> None:
    from running_server import write_model

    folder = write_model(tmp_path / "broken", tokenizer)
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "checksums.json").unlink()
    server = start_server(folder)
    answer = server.post("/v1/completions", prompt="x", max_tokens=3)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_failed"
    for word in (str(tmp_path), "broken", "Traceback", ".py"):
        assert word not in answer.text
