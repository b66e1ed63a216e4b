"""A server's process and a client that asks it; and the random models that are served."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import httpx
import torch

from mini_llm.checkpoint import save_model
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from tests.warm_cli import WarmProcess

ANSWER_SECONDS = 60.0
Process = subprocess.Popen[bytes] | WarmProcess


class RunningServer:
    """A server's process, and a client that asks it."""

    def __init__(self, process: Process, stdout: TextIO, log: Path) -> None:
        self.process, self.stdout, self.log = process, stdout, log
        self.address = stdout.readline().strip().rstrip("/")
        assert self.address.startswith("http"), log.read_text()
        self.url = f"{self.address}/v1"
        self.port = int(self.address.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.address, timeout=ANSWER_SECONDS)

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.client.post(path, json=body)

    def ask(self, path: str, **body: object) -> dict:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str) -> float:
        found = re.search(rf"^mini_llm_{name} ([0-9.e+-]+)$", self.client.get("/metrics").text, re.M)
        assert found, name
        return float(found[1])

    def wait_for(self, name: str, value: float, seconds: float = 10.0) -> float:
        """Return after how many seconds the metric had that value."""
        began = time.monotonic()
        while self.metric(name) != value:
            assert time.monotonic() - began < seconds, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.005)
        return time.monotonic() - began

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


StartServer = Callable[..., RunningServer]
OpenPage = Callable[..., Any]


def write_model(folder: Path, tokenizer: Tokenizer, seed: int = 0, **shape: object) -> Path:
    """Write a random model whose special tokens never win: no text ends early."""
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 400, "max_seq_len": 512}
    model = Transformer(ModelConfig(tie_embeddings=False, **{**values, **shape})).requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=rng) * (0.3 if weight.ndim > 1 else 1))
    model.lm_head.weight[:8] = 0
    save_model(folder, model, tokenizer)
    return folder
