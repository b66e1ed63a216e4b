"""The comparison of recipes: the baseline is the best of its sweep, the share reaches it, no run is trained twice."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from mini_llm.data.token_store import TokenStore
from mini_llm.train.config import TrainConfig


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    yield importlib.import_module("sample_efficiency")
    sys.modules.pop("sample_efficiency")


@pytest.fixture
def ours(tiny_store: Path) -> TrainConfig:
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 512, "max_seq_len": 32}
    settings = {"batch_size": 4, "block_size": 32, "compile": False, "device": "cpu", "warmup_iters": 20}
    return TrainConfig.model_validate(
        {"data_dir": str(tiny_store), "optimizer": "muon", "lr_schedule": "wsd", "model": shape, **settings}
    )


def test_the_verdict(benchmark: Any, ours: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With losses that are given: rate 2e-3 is the baseline, and ours is as good from 60 % of the tokens on."""
    asked: list[tuple[str, TrainConfig]] = []

    class Given(benchmark.Runs):  # type: ignore[misc, name-defined]
        def run(self, name: str, config: TrainConfig) -> dict[str, Any]:
            asked.append((name, config))
            tokens = config.max_iters * config.tokens_per_step
            rate = {1e-3: 5.0, 2e-3: 4.0, 4e-3: 4.5}[config.learning_rate] if name.startswith("nano") else None
            loss = (rate or 4.6 - tokens / 10_000) + 0.001 * config.seed
            return {"loss": loss, "bits_per_byte": loss / 2, "tokens": tokens, "seconds": 1.0}

    store = TokenStore.open(ours.data_dir)
    args = argparse.Namespace(tokens=10_000, seeds=3, shares=[1.0, 0.4, 0.6], rates=[1e-3, 2e-3, 4e-3], tied=False)
    result = benchmark.measure(Given(tmp_path, store, None), ours, args)
    assert result["baseline_rate"] == 2e-3
    assert result["baseline"]["losses"] == pytest.approx([4.001, 4.002, 4.003])
    assert result["token_share_to_baseline"] == 0.6
    assert result["losses"]["ours_0.4"] > result["losses"]["baseline"] >= result["losses"]["ours_0.6"]
    assert "60%" in capsys.readouterr().out
    for name, config in asked:  # each run's own schedule ends at its share; the baseline is nanoGPT's
        if name.startswith("nano"):
            assert (config.optimizer, config.lr_schedule, config.min_lr) == (
                "adamw",
                "cosine",
                config.learning_rate / 10,
            )
            assert config.max_iters == round(10_000 / 128)
            assert config.init == "normal"
        else:
            assert config.optimizer == "muon"
            assert config.max_iters in [round(share * 10_000 / 128) for share in args.shares]
        assert config.lr_decay_iters is None
        assert config.model == ours.model


def test_a_run_that_is_done_is_not_trained_again(benchmark: Any, ours: TrainConfig, tmp_path: Path) -> None:
    store, config = TokenStore.open(ours.data_dir), ours.model_copy(update={"max_iters": 5, "warmup_iters": 1})
    first = benchmark.Runs(tmp_path, store, 8).run("a", config)
    assert first["tokens"] == 5 * 128
    assert 0 < first["loss"] < 7
    again = benchmark.Runs(tmp_path, store, 8)
    again._train = lambda config: pytest.fail("trained again")
    assert again.run("a", config) == first
    with pytest.raises(pytest.fail.Exception):
        again.run("a", config.model_copy(update={"seed": 2}))
    again.code = "another version of the training code"
    with pytest.raises(pytest.fail.Exception):
        again.run("a", config)


def test_a_tied_baseline_says_so(benchmark: Any, ours: TrainConfig) -> None:
    untied = ours.model_copy(update={"model": ours.model.model_copy(update={"tie_embeddings": False})})
    assert benchmark.nanogpt(untied, 1e-3).model.tie_embeddings is False
    assert benchmark.nanogpt(untied, 1e-3, tied=True).model == ours.model
