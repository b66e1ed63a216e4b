"""Adapters side by side: one server, one base, each name with the answers of its own folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running_server import StartServer, write_model

from mini_llm import Generator
from mini_llm.checkpoint import read_model_config
from mini_llm.errors import UsageError, UserError
from mini_llm.model.transformer import Transformer
from mini_llm.serve.settings import parse_adapters
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.adapter_files import begin
from mini_llm.tune.config import LoraConfig


def write_adapter(folder: Path, base: Path, tokenizer: Tokenizer, seed: int) -> Path:
    model = Transformer(read_model_config(base))
    kept = begin(model, base, str(base), LoraConfig(rank=2, train_markers=False), tokenizer, seed)
    assert kept is not None
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    folder.mkdir()
    kept.write(folder, kept.weights(model), model.config, tokenizer)
    return folder


@pytest.fixture
def adapters(model_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> dict[str, Path]:
    return {name: write_adapter(tmp_path / name, model_folder, tokenizer, i) for i, name in enumerate(["one", "two"])}


def test_each_name_has_its_own_answers(
    model_folder: Path, adapters: dict[str, Path], start_server: StartServer
) -> None:
    words = [word for name, folder in adapters.items() for word in ("--adapter", f"{name}={folder}")]
    client = start_server(model_folder, "--name", "base", *words).client
    listed = {model["id"]: model["kind"] for model in client.get("/v1/models").json()["data"]}
    assert listed == {"base": "model", "one": "adapter", "two": "adapter"}
    texts = {}
    for name, folder in {"base": model_folder, **adapters}.items():
        asked = {"model": name, "prompt": "The people", "temperature": 0, "max_tokens": 12}
        answer = client.post("/v1/completions", json=asked).json()
        texts[name] = answer["choices"][0]["text"]
        alone = Generator(folder, device="cpu").generate("The people", max_new_tokens=12, temperature=0)
        assert "The people" + texts[name] == alone
    assert len(set(texts.values())) == 3


def test_what_is_no_adapter_of_this_model_is_refused(
    model_folder: Path, adapters: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", tokenizer, seed=5)
    for words, kind, message in (
        (["one"], UsageError, "is not NAME=DIR"),
        (["a b=x"], UsageError, "is not NAME=DIR"),
        ([f"base={adapters['one']}"], UsageError, "is called base already"),
        ([f"a={adapters['one']}", f"a={adapters['two']}"], UsageError, "is called a already"),
        ([f"a={model_folder}"], UserError, "is a whole model"),
        (["a=nowhere"], UserError, "no such folder"),
    ):
        with pytest.raises(kind, match=message):
            parse_adapters(words, model_folder, "base")
    with pytest.raises(UserError, match="is for another model than"):
        parse_adapters([f"a={adapters['one']}"], other, "base")
