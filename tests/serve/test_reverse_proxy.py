"""The nginx of docs/serving.md, as it stands there: TLS outside, streams that are not held back, and who may ask."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import RunningServer, StartServer

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx here: apt-get install nginx")
NAME = "models.example"
FRAME = """daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    types {{ }}
    {server}
}}
"""

Proxy = Callable[..., httpx.Client]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here, which makes a certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-keyout", f"{folder}/key", "-out", f"{folder}/crt", "-days", "2", "-subj", f"/CN={NAME}",
               "-addext", f"subjectAltName=DNS:{NAME}"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture
def proxy(repository: Path, tmp_path: Path, certificate: Path) -> Iterator[Proxy]:
    """Return `proxy(server, change)`: a client of nginx with the documented lines, changed by `change`."""
    page = (repository / "docs" / "serving.md").read_text(encoding="utf-8")
    found = re.search(r"```text\n(server \{.+?^\})\n```", page, re.S | re.M)
    assert found
    started: list[tuple[subprocess.Popen[bytes], httpx.Client]] = []

    def start(server: RunningServer, change: Callable[[str], str] = str) -> httpx.Client:
        port, lines = free_port(), change(found[1])
        here = {
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/ssl/models.crt": f"{certificate}/crt",
            "/etc/ssl/models.key": f"{certificate}/key",
            "127.0.0.1:8000": f"127.0.0.1:{server.port}",
        }
        for old, new in here.items():
            assert old in lines
            lines = lines.replace(old, new)
        file = tmp_path / "nginx.conf"
        file.write_text(FRAME.format(folder=tmp_path, server=lines))
        process = subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-c", str(file), "-e", "stderr"])
        client = httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False, timeout=60, headers={"Host": NAME})
        started.append((process, client))
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return client
            except OSError:
                assert process.poll() is None, "nginx refuses the documented lines"
                time.sleep(0.05)
        raise AssertionError("nginx does not answer")

    yield start
    for process, client in started:
        client.close()
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def named(start_server: StartServer, endless_folder: Path) -> RunningServer:
    return start_server(endless_folder, "--allowed-host", NAME, "--slots", 1)


@pytest.mark.parametrize("told", [True, False], ids=["as documented", "without proxy_buffering"])
def test_a_stream_is_not_held_back_and_its_end_frees_the_slot(proxy: Proxy, named: RunningServer, told: bool):
    """Without that line our X-Accel-Buffering does it."""
    client = proxy(named, str if told else lambda lines: lines.replace("proxy_buffering off;", ""))
    body = {"prompt": "The", "max_tokens": 90_000, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(5):  # they come while the text is written: its end is minutes away
            assert '"text"' in next(lines)
        assert named.metric("requests_running") == 1
    named.wait_for("requests_running", 0)


def test_the_page_may_ask_under_its_own_name_and_no_other(proxy: Proxy, named: RunningServer):
    client = proxy(named)
    assert client.get("/").text == named.client.get("/").text
    body = {"prompt": "The", "max_tokens": 2}
    own = client.post("/v1/completions", json=body, headers={"Origin": f"https://{NAME}"})
    assert own.status_code == 200, own.text
    other = client.post("/v1/completions", json=body, headers={"Origin": "https://elsewhere.example"})
    assert other.json()["error"]["code"] == "cross_origin"
    rebound = client.post("/v1/completions", json=body, headers={"Host": "elsewhere.example"})
    assert rebound.json()["error"]["code"] == "host_not_allowed"


def test_a_browser_uses_the_page_through_it(proxy: Proxy, named: RunningServer, browser: Any):
    address = str(proxy(named).base_url).replace("127.0.0.1", NAME)
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(address)
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-complete")
    page.evaluate("for (const one of document.querySelectorAll('#panel-complete details')) one.open = true")
    page.fill("#complete-max_tokens", "4")
    page.fill("#complete-field", "The city of")
    page.press("#complete-field", "Enter")
    page.wait_for_selector("article.assistant >> text=the most tokens")
    context.close()


def test_what_is_too_large_is_refused_in_the_servers_words(proxy: Proxy, named: RunningServer):
    answer = proxy(named).post("/v1/completions", content=b'{"prompt": "' + b"x" * 1_100_000 + b'"}',
                               headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code == 413
    assert "error" in answer.json()
