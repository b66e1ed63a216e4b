"""A tiny model with random weights, and twenty items of our own in each set's published format."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mini_llm.checkpoint import save_model
from mini_llm.eval.language_model import LocalModel
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.train import train_tokenizer

SETS = Path(__file__).parent / "sets"


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one core: for models this small a second one costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sets() -> Path:
    return SETS


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str], random_model: Callable[..., Transformer]
) -> Path:
    """Return a model folder with 600 tokens and a context of 96, which some of the items do not fit into."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = train_tokenizer(
        sotu_texts[:5], folder / "tokenizer", vocab_size=600, model_type="bpe", sample_bytes=200_000, seed=0
    )
    save_model(folder / "model", random_model(seed=3, vocab_size=600, max_seq_len=96), tokenizer)
    return folder / "model"


@pytest.fixture(scope="session")
def local_model(model_folder: Path) -> LocalModel:
    return LocalModel.load(model_folder, device="cpu")


@pytest.fixture(scope="session")
def wide_folder(
    tmp_path_factory: pytest.TempPathFactory, local_model: LocalModel, random_model: Callable[..., Transformer]
) -> Path:
    """Return a model that every item fits into: of longer ones lm-eval sends a server one token less."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    save_model(folder, random_model(seed=3, vocab_size=600, max_seq_len=512), local_model.tokenizer)
    return folder


@pytest.fixture(scope="session")
def server_address(wide_folder: Path) -> Iterator[str]:
    """Return the address of `mini-llm serve` on that model."""
    command = [sys.executable, "-m", "mini_llm", "serve", str(wide_folder), "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip().rstrip("/")
        server.terminate()
