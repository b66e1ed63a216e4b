"""Samples while training: seen, written down, the same in every repetition, and without effect on the weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.sample import MAX_NEW_TOKENS, write_sample
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]


def test_the_command_shows_and_writes_them(settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    words = settings(sample_interval=4, sample_prompt="Fellow citizens", eval_interval=100)
    result = run_cli("train", *words, env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    rows = read_metrics(tmp_path / "run", "samples")
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert {row["prompt"] for row in rows} == {"Fellow citizens"}
    assert all(isinstance(row["text"], str) and row["text"] for row in rows)
    assert result.stderr.count("the model writes: Fellow citizens") == 3
    assert not any(ord(c) < 32 and c != "\n" for c in result.stderr)


def test_they_change_nothing_and_a_resumed_run_writes_the_same(make_config: MakeConfig, tmp_path: Path) -> None:
    changes = {"eval_interval": 5, "model": {"dropout": 0.2}}
    plain = train(make_config(tmp_path / "plain", **changes))
    config = make_config(tmp_path / "sampled", sample_interval=5, sample_prompt="The", **changes)

    def power_cut(step: int, _: object) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, after_evaluation=power_cut)
    run = train(config)
    whole = train(make_config(tmp_path / "whole", sample_interval=5, sample_prompt="The", **changes))
    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    for name in ("metrics.jsonl", "latest/model.safetensors"):
        assert (run / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.parametrize("prompt", ["", "The", "word " * 500])
def test_any_prompt_gives_text_and_leaves_the_random_state_alone(prompt: str, tiny_store: Path) -> None:
    tokenizer = Tokenizer.load(tiny_store / "tokenizer")
    model = Transformer(ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=600, max_seq_len=64, dropout=0.5))
    model.init_weights(0)
    model.train()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    texts = {write_sample(model, tokenizer, prompt, seed=3) for _ in range(2)}
    assert len(texts) == 1
    assert texts != {write_sample(model, tokenizer, prompt, seed=4)}
    assert torch.get_rng_state().equal(state)
    assert model.training


def test_a_context_shorter_than_a_sample_and_weights_gone_bad(tiny_store: Path) -> None:
    tokenizer = Tokenizer.load(tiny_store / "tokenizer")
    model = Transformer(ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=512, max_seq_len=MAX_NEW_TOKENS // 2))
    model.init_weights(0)
    assert write_sample(model, tokenizer, "word " * 99, seed=0)
    model.requires_grad_(False).lm_head.weight.fill_(float("nan"))
    assert write_sample(model, tokenizer, "", seed=0) == ""


def test_what_a_model_writes_cannot_command_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from mini_llm import log
    from mini_llm.train.run.display import Display

    said: list[str] = []
    monkeypatch.setattr(log, "note", said.append)
    display = Display()
    display.show_sample(1, "a", "\x1b[2J\x07 b\n\tc [bold]")
    assert said == ["step 1: the model writes: a [2J b c [bold]"]
    assert json.dumps(display.sample) == json.dumps("a [2J b c [bold]")
