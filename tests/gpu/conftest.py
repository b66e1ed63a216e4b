"""Where the GPU's tests run: on CUDA, or with MINI_LLM_REHEARSE=1 on a CPU, as far as a CPU can."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_llm.inference.backends.cuda_graphs import CudaGraphsBackend

REHEARSE = os.environ.get("MINI_LLM_REHEARSE") == "1"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and skip what cannot run."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if not (torch.cuda.is_available() or REHEARSE):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU; MINI_LLM_REHEARSE=1 runs it on a CPU, at toy size"))
        elif REHEARSE and item.get_closest_marker("only_cuda"):
            item.add_marker(pytest.mark.skip(reason="only CUDA can do it"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Show a failure at once: pytest's own list comes at the end, and a card's minutes may be over before."""
    if report.failed and torch.cuda.is_available() and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}\n{report.longreprtext}", flush=True)


@pytest.fixture(scope="session")
def device() -> str:
    return "cpu" if REHEARSE else "cuda"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Return a token store of this repository's own pages, 512 pieces: a card's machine may have no corpus."""
    from mini_llm.data.prepare import prepare
    from mini_llm.tokenizer.train import train_tokenizer

    folder = tmp_path_factory.mktemp("store")
    texts = [path.read_text(encoding="utf-8") for path in sorted((repository / "docs").glob("*.md"))]
    (folder / "texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    train_tokenizer(texts, folder / "tokenizer", vocab_size=512, model_type="bpe", sample_bytes=10**6, seed=0)
    prepare([folder / "texts"], folder / "tokenizer", folder / "tokens", val_fraction=0.3, workers=1)
    return folder / "tokens"


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, device: str) -> Callable[..., CudaGraphsBackend]:
    """Return `graphs(model, vocab_size)`, the backend; on a CPU a recording is replaced by the steps themselves."""

    def without_recording(_self: CudaGraphsBackend, step: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            step()
        return step

    if device == "cpu":
        monkeypatch.setattr(CudaGraphsBackend, "_capture", without_recording)
    return CudaGraphsBackend


@pytest.fixture(autouse=True)
def leave_no_memory() -> object:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
