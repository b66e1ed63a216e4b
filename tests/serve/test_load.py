"""Many at once: a full queue, clients that leave or do not read, and an end in which running texts end whole."""

import asyncio
import contextlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from running_server import RunningServer, StartServer, write_model

from mini_llm.serve.app import Service, make_app
from mini_llm.serve.server import Server, open_socket
from mini_llm.serve.settings import ServeSettings
from mini_llm.tokenizer.tokenizer import Tokenizer

LONG = {"prompt": "Hello", "max_tokens": 90_000, "stream": True}
FREED_WITHIN = 0.2  # seconds, and what one look at /metrics takes


@contextlib.contextmanager
def raw_request(server: RunningServer, **body: object) -> Iterator[socket.socket]:
    """Send a request and leave the answer unread."""
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: "
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + f"{len(data)}\r\n\r\n".encode() + data)
        yield connection


@pytest.fixture
def idle(busy_server: RunningServer) -> Iterator[RunningServer]:
    busy_server.wait_for("requests_running", 0)
    yield busy_server
    busy_server.wait_for("requests_running", 0)
    busy_server.wait_for("requests_waiting", 0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_leaves_frees_its_slot(idle: RunningServer, stream: bool, reset: bool) -> None:
    with raw_request(idle, **{**LONG, "stream": stream}) as connection:
        idle.wait_for("requests_running", 1)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert idle.wait_for("requests_running", 0) < FREED_WITHIN


def test_a_client_that_leaves_while_its_prompt_is_read(idle: RunningServer) -> None:
    with raw_request(idle, prompt=[[9] * 60_000], max_tokens=5):
        idle.wait_for("requests_running", 1)
    assert idle.wait_for("requests_running", 0) < 2 * FREED_WITHIN  # one chunk of a long prompt may be half done


def test_a_client_that_leaves_the_queue(idle: RunningServer) -> None:
    with raw_request(idle, **LONG) as first, raw_request(idle, **LONG) as second:
        idle.wait_for("requests_running", 2)
        readers = [threading.Thread(target=_read_on, args=(c,), daemon=True) for c in (first, second)]
        for reader in readers:
            reader.start()
        for stream in (True, False):
            with raw_request(idle, **{**LONG, "stream": stream}):
                idle.wait_for("requests_waiting", 1)
            assert idle.wait_for("requests_waiting", 0) < FREED_WITHIN
        for connection in (first, second):
            connection.shutdown(socket.SHUT_RDWR)


def _read_on(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


def test_a_full_queue_says_when_to_come_again(idle: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(raw_request(idle, **LONG))
            threading.Thread(target=_read_on, args=(connection,), daemon=True).start()
            stack.callback(connection.shutdown, socket.SHUT_RDWR)
        idle.wait_for("requests_waiting", 2)
        refused = idle.post("/v1/completions", prompt="x", max_tokens=1)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-should-retry"] == "true"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            openai.OpenAI(base_url=idle.url, api_key="x", max_retries=0).completions.create(model="endless", prompt="x")
        assert idle.client.get("/health").status_code == 200


def test_more_texts_than_there_is_room_for_are_refused_at_once(idle: RunningServer) -> None:
    response = idle.post("/v1/completions", prompt=["a", "b", "c", "d", "e"], max_tokens=1)
    assert response.status_code == 400


def test_a_reader_that_does_not_read_is_let_go(start_server: StartServer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    # The smallest model: what is unread fills megabytes of the system's own buffers before the server can know.
    folder = write_model(tmp_path / "fast", tokenizer, max_seq_len=100_000)
    server = start_server(folder, "--slots", 2, "--queue", 2)
    with raw_request(server, **{**LONG, "logprobs": 20, "temperature": 0}) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.wait_for("requests_running", 1)
        began = time.monotonic()
        answer = server.ask("/v1/completions", prompt="x", max_tokens=20)  # others are not held up
        assert time.monotonic() - began < 5
        assert answer["usage"]["completion_tokens"] == 20
        server.wait_for("requests_running", 0, seconds=60)
    assert 'cancelled_total{why="unread"} 1.0' in server.client.get("/metrics").text
    server.stop()


def test_many_streams_are_each_the_text_that_they_would_be_alone(server: RunningServer) -> None:
    bodies = [{"prompt": f"Text {n}", "max_tokens": 30, "seed": n} for n in range(24)]
    alone = [server.ask("/v1/completions", **body)["choices"][0]["text"] for body in bodies]
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            found[n] = client.post("/v1/completions", json=bodies[n]).json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(24)] == alone
    server.wait_for("slots_used", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_texts_end_whole(start_server: StartServer, endless_folder: Path, number: int) -> None:
    server = start_server(endless_folder, "--slots", 1, "--drain", 20)
    body = {"prompt": "Hello", "max_tokens": 800, "stream": True, "stream_options": {"include_usage": True}}
    with raw_request(server, **body) as connection:
        connection.settimeout(60)
        answer = connection.recv(1000)
        server.wait_for("requests_running", 1)
        server.process.send_signal(number)
        while httpx.get(f"{server.address}/health").json() != {"status": "draining"}:
            time.sleep(0.01)
        assert httpx.get(f"{server.address}/health").status_code == 503
        for post in (server.client.post, httpx.post):  # over a connection that is open, and over a new one
            refused = post(f"{server.address}/v1/completions", json={"prompt": "x", "max_tokens": 1})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert int(refused.headers["retry-after"]) >= 1
        assert server.metric("requests_running") == 1
        while part := connection.recv(65536):
            answer += part
    assert b"data: [DONE]" in answer
    assert b'"completion_tokens":800' in answer
    assert server.process.wait(30) == 128 + number
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port))


def test_a_second_signal_ends_at_once_and_quietly(start_server: StartServer, endless_folder: Path) -> None:
    server = start_server(endless_folder, "--drain", 60)
    with raw_request(server, **LONG):
        server.wait_for("requests_running", 1)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.address}/health").status_code == 200:
            time.sleep(0.01)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 143
        assert time.monotonic() - began < 10
    assert "Traceback" not in server.log.read_text()


def test_a_signal_while_the_model_loads_is_heard(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(model_folder, ServeSettings(port=0))
    server = Server(uvicorn.Config(make_app(service), log_config=None), service)
    load = service.catalog.get

    async def load_and_hear() -> object:
        signal.raise_signal(signal.SIGTERM)
        return await load()

    monkeypatch.setattr(service.catalog, "get", load_and_hear)
    with contextlib.closing(open_socket("127.0.0.1", 0)) as listener:
        asyncio.run(asyncio.wait_for(server.serve([listener]), 30))
    assert (server.signal, server.started) == (signal.SIGTERM, False)


def test_what_does_not_end_in_time_is_told(start_server: StartServer, endless_folder: Path) -> None:
    server = start_server(endless_folder, "--drain", 0.3)
    with raw_request(server, **LONG) as connection:
        connection.settimeout(60)
        server.wait_for("requests_running", 1)
        server.process.send_signal(signal.SIGTERM)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert b'"code":"shutting_down"' in answer
    assert server.process.wait(30) == 143


def test_an_idle_server_ends_at_once(start_server: StartServer, model_folder: Path) -> None:
    server = start_server(model_folder)
    began = time.monotonic()
    assert server.stop() == 143
    assert time.monotonic() - began < 5
    assert "Traceback" not in server.log.read_text()
