"""A base model that is made once, and conversations in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llm.checkpoint import save_model
from mini_llm.data.prepare import prepare
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.train import train_tokenizer
from tests.one_core import one_core

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "owl", "pig", "rat", "cow", "elk", "yak"]
SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=320, max_seq_len=256)


PAIRS = [{"question": f"Part {a}{b}.", "answer": f"{a} {b}"} for a in WORDS for b in WORDS[:5]]


def spelling(word: str) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"Spell {word}."},
        {"role": "assistant", "content": " ".join(word)},
    ]
    return {"messages": messages}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one core, as the processes that are compared with this one do: more add up in another order."""
    with one_core():
        yield


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [" ".join(f"Spell {w}. {' '.join(w)}" for w in WORDS)] * 3
    folder = tmp_path_factory.mktemp("tune") / "tokenizer"
    return train_tokenizer(texts, folder, vocab_size=SHAPE.vocab_size, model_type="bpe", sample_bytes=10**6, seed=0)


@pytest.fixture(scope="session")
def base(chat_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with chat markers."""
    torch.manual_seed(0)
    model = Transformer(SHAPE)
    model.init_weights(seed=0)
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, model, chat_tokenizer)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Any, name: str = "chat.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def spelling_file(write_rows: Callable[..., Path]) -> Path:
    return write_rows(*(spelling(a + b) for a in WORDS for b in WORDS[:5]))


@pytest.fixture(scope="session")
def tiny_chat_store(chat_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text in the base's own tokens, to replay."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(30):
        (folder / f"{number}.txt").write_text(" ".join(WORDS[number % 7 :]) * 30, encoding="utf-8")
    prepare([folder], chat_tokenizer.folder, folder / "tokens", val_fraction=0.2)
    return folder / "tokens"


@pytest.fixture(scope="session")
def answering(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a little to take words apart: right now and then, and it ends its answers."""
    from mini_llm.tune.config import SftConfig
    from mini_llm.tune.sft import sft

    folder = tmp_path_factory.mktemp("answering")
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    values = {"block_size": 127, "batch_size": 4, "compile": False, "device": "cpu", "dtype": "float32"}
    values |= {"epochs": None, "max_iters": 60, "learning_rate": 0.01, "eval_interval": 1000, "eval_iters": 1}
    config = SftConfig.model_validate(
        {"base": str(base), "data": [str(data)], "out_dir": str(folder / "run"), **values}
    )
    return sft(config).resolve()
