"""A base model that is made once, and conversations in files."""

from __future__ import annotations

import json
from collections.abc import Callable
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

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "owl", "pig", "rat", "cow", "elk", "yak"]
SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=320, max_seq_len=256)


def spelling(word: str) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"Spell {word}."},
        {"role": "assistant", "content": " ".join(word)},
    ]
    return {"messages": messages}


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
