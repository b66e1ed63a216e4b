"""Going on from others: the first loss is transformers', resuming is exact, contradictions are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from mini_llm.checkpoint import load_model
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.train.config import TrainConfig
from mini_llm.train.rows.dataloader import TrainLoader
from mini_llm.train.step import Stepper
from mini_llm.train.train import train

Settings = Callable[..., list[str]]
MakeConfig = Callable[..., TrainConfig]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 520,  # eight more than there are tokens, as others' models often have
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
KINDS = {
    "llama, tied, bfloat16, in shards": ("Llama", {"tie_word_embeddings": True}, torch.bfloat16),
    "llama, stretched": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": False}, torch.float32),
    "qwen3, tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}, torch.float32),
}


@pytest.fixture
def byte_level_store(tmp_path: Path, tiny_store: Path, run_cli) -> Path:  # type: ignore[no-untyped-def]
    """Return a store of tokens by a byte-level tokenizer of someone else, prepared by the command line."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [path.read_text() for path in (tiny_store.parent / "texts").glob("*.txt")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    folder = tmp_path / "foreign"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    words = ["--tokenizer", folder, "--out", tmp_path / "tokens", "--val-fraction", "0.2"]
    result = run_cli("prepare", tiny_store.parent / "texts", *words)
    assert result.returncode == 0, result.stderr
    return tmp_path / "tokens"


def foreign(folder: Path, kind: str, tokenizer: Path) -> Path:
    """Write a folder with random weights by transformers, and the tokenizer's files beside them."""
    import transformers

    name, changes, dtype = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE, **changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="40KB" if "shards" in kind else "5GB")
    assert (folder / "model.safetensors.index.json").exists() == ("shards" in kind)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_that_of_transformers(
    kind: str, byte_level_store: Path, make_config: MakeConfig, settings: Settings, tmp_path: Path, run_cli
) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    folder = foreign(tmp_path / "model", kind, TokenStore.open(byte_level_store).tokenizer_folder)
    words = [word for word in settings(data_dir=byte_level_store, max_iters=1) if not word.startswith("model.")]
    result = run_cli("train", *words, f"init_from={folder}")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = next(line["loss"] for line in lines if "loss" in line)
    split = TokenStore.open(byte_level_store).split("train")
    rows = TrainLoader(split, block_size=32, rows_per_step=4, seed=1337, align_documents=False).rows(0)
    rows = torch.as_tensor(rows).long()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        scores = model(rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten()).item()
    assert found == pytest.approx(expected, abs=2e-5)
    assert run_cli("generate", tmp_path / "run", "--prompt", "The", "--max-new-tokens", 3).returncode == 0


def test_a_run_stopped_and_resumed_is_the_unbroken_one_without_the_folder(
    byte_level_store: Path, settings: Settings, tmp_path: Path, run_cli
) -> None:  # type: ignore[no-untyped-def]
    folder = foreign(tmp_path / "model", "qwen3, tied", TokenStore.open(byte_level_store).tokenizer_folder)

    def run(out: Path, *words: str) -> None:
        plain = [w for w in settings(out, data_dir=byte_level_store, save_interval=2) if not w.startswith("model.")]
        result = run_cli("train", *plain, f"init_from={folder}", *words)
        assert result.returncode == 0, result.stderr

    run(tmp_path / "whole", "max_iters=4", "lr_decay_iters=4")
    run(tmp_path / "broken", "max_iters=2", "lr_decay_iters=4")
    folder.rename(tmp_path / "gone")
    result = run_cli("train", "--config", tmp_path / "broken" / "config.yaml", "max_iters=4")
    assert result.returncode == 0, result.stderr
    a, b = (load_model(tmp_path / n / "latest", device="cpu", dtype=torch.float32) for n in ("whole", "broken"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_what_contradicts_the_folder_is_refused(
    byte_level_store: Path, tiny_store: Path, make_config: MakeConfig, tmp_path: Path, settings: Settings, run_cli
) -> None:  # type: ignore[no-untyped-def]
    folder = foreign(tmp_path / "model", "qwen3, tied", TokenStore.open(byte_level_store).tokenizer_folder)
    with pytest.raises(UsageError, match="vocab_size=520, not 512"):
        make_config(init_from=folder, model={"n_kv_heads": 2, "head_dim": 16, "qk_norm": "true", "hidden_dim": 64})
    plain = [word for word in settings(data_dir=tiny_store) if not word.startswith("model.")]
    for words, message in (
        ([f"init_from={folder}"], "mini-llm prepare SOURCES --tokenizer"),  # tokens of another tokenizer
        ([f"init_from={tmp_path / 'none'}"], "no such folder"),
        ([f"init_from={folder}", "init=bigram"], "leave one out"),
        (["init_from=hf://no/such/name"], "is no name on the hub"),
    ):
        result = run_cli("train", *plain, *words)
        assert result.returncode in (1, 2)
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_our_own_run_may_be_the_beginning(make_config: MakeConfig, tmp_path: Path) -> None:
    first = train(make_config(tmp_path / "first", max_iters=2))
    stepper = Stepper(make_config(tmp_path / "second", init_from=first))
    trained = load_model(first / "latest", device="cpu", dtype=torch.float32)
    for ours, theirs in zip(stepper.trainee.model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    (first / "latest" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="damaged"):
        Stepper(make_config(tmp_path / "second", init_from=first))
