"""Servers as a user starts them: `mini-llm serve` in a process of its own, on a tiny random model that never ends."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import OpenPage, Process, RunningServer, StartServer, write_model

from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.train import train_tokenizer
from tests.warm_cli import WarmCli, needs_a_fresh_start

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--disable-quic",
         "--host-resolver-rules=MAP models.example 127.0.0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a Chromium; gone after each module, because its event loop would be in the way of other tests'."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser: pip install playwright"
    )
    if (path := shutil.which("chromium")) is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    playwright.expect.set_options(timeout=20_000)
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Return `open_page(server, script, may_fail=..., **context)`: a page where `script` ran first.

    Nothing may fail in it, or be said in the console, but what holds `may_fail`.
    """
    contexts, problems = [], []

    def opened(server: RunningServer, script: str = "", *, may_fail: str = "401", **more: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}, **more))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: may_fail in message.text or problems.append(message.text))
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        if script:
            page.add_init_script(script)
        page.goto(server.address)
        page.wait_for_selector("#model option", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    return train_tokenizer(sotu_texts[:5], folder, vocab_size=400, model_type="bpe", sample_bytes=200_000, seed=0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", tokenizer)


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Return a model that is slow enough to be met at work: its longest text takes minutes."""
    shape = {"dim": 256, "n_layers": 6, "max_seq_len": 100_000}
    return write_model(tmp_path_factory.mktemp("endless") / "endless", tokenizer, **shape)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory, warm_cli: Callable[..., WarmCli]) -> Iterator[StartServer]:
    """Return `start_server(folder, "--slots", 2, env={...})`; all servers are gone at the end.

    They are forked from a process that has imported torch; with `fresh=True` one starts from nothing.
    """
    started: list[RunningServer] = []

    def start(folder: Path, *words: object, env: dict[str, str] | None = None, fresh: bool = False) -> RunningServer:
        log = tmp_path_factory.mktemp("log") / "stderr.txt"
        command = ["serve", str(folder), "--port", "0", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **(env or {})}
        read, write = os.pipe()
        with log.open("w") as errors, open(os.devnull) as nothing:
            if fresh or needs_a_fresh_start(environment):
                process: Process = subprocess.Popen(
                    [sys.executable, "-m", "mini_llm", *command], stdin=nothing, stdout=write, stderr=errors,
                    env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                )  # fmt: skip
            else:
                streams = (nothing.fileno(), write, errors.fileno())
                process = warm_cli(environment).start(command, Path.cwd(), environment, *streams)
        os.close(write)
        started.append(RunningServer(process, os.fdopen(read), log))
        return started[-1]

    yield start
    for server in started:
        server.client.close()
        server.process.kill()
        server.process.wait()
        server.stdout.close()


@pytest.fixture(scope="session")
def server(start_server: StartServer, model_folder: Path) -> RunningServer:
    return start_server(model_folder, fresh=True)


@pytest.fixture(scope="session")
def busy_server(start_server: StartServer, endless_folder: Path) -> RunningServer:
    """Return a server of two slots and a queue of two, whose texts are 100,000 tokens long."""
    return start_server(endless_folder, "--slots", 2, "--queue", 2)
