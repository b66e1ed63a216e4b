"""What serve.py compares: our server, llama.cpp's and transformers', each a process, and our engine without a server.

Who is not being measured is stopped (SIGSTOP), so that no idle thread disturbs the one that is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from _harness import ROOT, Skipped, Worker, tell
from _serve_load import Asked, questions

SLOTS = 64
START_SECONDS = 120.0
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000", **os.environ}  # as the command line has it


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ServerProcess:
    """A server's process, at rest until `awake`."""

    def __init__(self, name: str, command: list[str], port: int, model: str) -> None:
        self.name, self.model = name, model
        # Asked by so many streams at most; in one round alone; refuses fields that it does not know.
        self.streams, self.once, self.plain = SLOTS, False, False
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=ROOT)
        self._wait()

    def _wait(self) -> None:
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.1)
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        self.close()
        raise Skipped(f"the server did not start: {lines[-1][:300] if lines else 'it said nothing'}")

    def rest(self) -> None:
        """Stop it, as it is."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.wake()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def ours(folder: Path, dtype: str) -> ServerProcess:
    """Start `mini-llm serve` on a folder."""
    port = free_port()
    words = ["serve", str(folder), "--port", str(port), "--name", "ours", "--slots", str(SLOTS), "--dtype", dtype]
    name = f"Mini-LLM {'bf16' if dtype == 'bfloat16' else dtype}"
    return ServerProcess(name, [sys.executable, "-m", "mini_llm", *words], port, "ours")


def llama_cpp(gguf: Path, kind: str) -> ServerProcess:
    """Start llama.cpp's server on a GGUF file of ours."""
    port = free_port()
    settings = {"gguf": str(gguf), "port": port}
    return ServerProcess(f"llama.cpp {kind}", [sys.executable, __file__, json.dumps(settings)], port, "any")


def transformers(folder: Path) -> ServerProcess:
    """Start `transformers serve` on a folder; on a CPU it answers one after the other."""
    port = free_port()
    words = ["serve", str(folder), "--port", str(port), "--device", "cpu", "--dtype", "bfloat16"]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "transformers.cli.transformers"]
    server = ServerProcess("transformers bf16", [*command, *words], port, str(folder))
    server.streams, server.once, server.plain = 8, True, True
    return server


def serve_llama_cpp(settings: dict[str, Any]) -> None:
    """Be llama.cpp's server: as many places as we have, each with room for a prompt and its answer."""
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = settings["gguf"]
    params.hostnames, params.port = ["127.0.0.1"], settings["port"]
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * 512
    n_threads = len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.ui, params.warmup = False, True
    server = llama.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


class EngineAlone(Worker):
    """Our engine in a process that has no server, at rest until `write`."""

    def __init__(self, folder: Path, dtype: str) -> None:
        settings = {"engine": str(folder), "dtype": dtype}
        super().__init__(f"engine {dtype}", [sys.executable, __file__, json.dumps(settings)], ENVIRONMENT)
        self.answer()

    def write(self, *load: int) -> float:
        """Return the tokens/s of `questions(*load)`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(load) + "\n")
        self.process.stdin.flush()
        return float(self.answer()["tokens_per_second"])


def be_engine(settings: dict[str, Any]) -> None:
    """Be the process of `EngineAlone`: for each line that names a load, write its texts and tell the tokens/s."""
    from mini_llm.inference.engine.request import Handle, Request
    from mini_llm.inference.generate import Generator
    from mini_llm.inference.sampling.params import SamplingParams

    generator = Generator(settings["engine"], device="cpu", dtype=settings["dtype"], max_slots=SLOTS)
    engine, greedy = generator.engine, SamplingParams(temperature=0)

    def submit(asked: Asked) -> Handle:
        ids = generator.encode_prompt(asked.prompt)
        return engine.submit(Request(prompt_ids=ids, max_new_tokens=asked.n_new, sampling=greedy, ignore_eos=True))

    def write(streams: list[list[Asked]]) -> float:
        began, n = time.perf_counter(), 0
        running = [(submit(stream[0]), stream[1:]) for stream in streams]
        while running:
            engine.step()
            n += sum(len(handle.take()) for handle, _ in running)
            running = [
                (submit(left[0]), left[1:]) if handle.done and left else (handle, left)
                for handle, left in running
                if left or not handle.done
            ]
        return n / (time.perf_counter() - began)

    write([[Asked("the people", 8)] for _ in range(SLOTS)])  # takes the cache's memory
    tell({"ready": True})
    for line in sys.stdin:
        tell({"tokens_per_second": write(questions(*json.loads(line)))})


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    be_engine(given) if "engine" in given else serve_llama_cpp(given)
