"""The ladder through the command line: rungs are trained, kept, gone on with, and the big run is foretold."""

import json
from pathlib import Path

import pytest

from mini_llm.errors import UsageError
from mini_llm.model.accounting import count_block_matrices
from mini_llm.model.config import ModelConfig
from mini_llm.plan.ladder import LEAST_STEPS, climb, parse_sizes, products, rung_config, smaller
from mini_llm.train.config import TrainConfig


@pytest.fixture
def words(tiny_store: Path, tmp_path: Path) -> list[str]:
    shape = ["model.dim=64", "model.n_layers=4", "model.n_heads=4", "model.vocab_size=512", "model.max_seq_len=32"]
    batch = ["batch_size=4", "block_size=32", "max_iters=90", "warmup_iters=5", "eval_iters=4"]
    machine = ["device=cpu", "compile=false", "optimizer=muon", "lr_schedule=wsd", "min_lr=0", "learning_rate=0.004"]
    place = [f"data_dir={tiny_store}", "--out", str(tmp_path / "ladder")]
    return ["ladder", *shape, *batch, *machine, *place, "--sizes", "5K,40K", "--minutes", "2"]


def test_the_whole_ladder(run_cli, words: list[str], tmp_path: Path) -> None:
    first = run_cli(*words, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["tokens"] == 90 * 128
    assert found["low"] <= found["loss"] <= found["high"]
    assert 3 < found["loss"] < 6.3  # ln 512 is 6.24
    assert found["factor"] in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    assert {rung["size"] for rung in found["rungs"]} == {5_000, 40_000}
    chosen = [rung for rung in found["rungs"] if rung["factor"] == found["factor"]]
    assert len(chosen) == 4
    longest = {rung["size"]: rung for rung in chosen if rung["tokens"] == max(r["tokens"] for r in chosen)}
    assert longest[40_000]["loss"] < longest[5_000]["loss"]

    lines = (tmp_path / "ladder" / "ladder.jsonl").read_text().splitlines()
    (tmp_path / "ladder" / "ladder.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # ended before the last rung
    again = run_cli(*words)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "ladder" / "ladder.jsonl").read_text().splitlines()[:-1] == lines[:-1]
    assert f"{found['loss']:.3f} nats/token" in again.stdout
    assert "the same operations go furthest as" in again.stdout
    assert "o" in again.stdout.splitlines()[1] + again.stdout.splitlines()[2]

    other = run_cli(*words, "batch_size=2")
    assert (other.returncode, "another ladder" in other.stderr) == (1, True)
    (tmp_path / "ladder" / "ladder.jsonl").write_text("{}\n")
    broken = run_cli(*words)
    assert (broken.returncode, "cannot be read as a ladder" in broken.stderr) == (1, True)


def test_too_few_minutes_say_how_many(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_llm.plan.ladder.seconds_per_step", lambda config, steps: 1.0)  # of any machine
    with pytest.raises(UsageError, match=r"0\.1 minutes are too few") as refused:
        climb(TrainConfig(data_dir=str(tiny_store), max_iters=9000), [20_000, 40_000], 0.1, tmp_path / "ladder")
    # two sizes at 4/3 runs each and the smallest at two more rates for a third: 10/3 s a step, 15 % left for starts
    assert f"--minutes {int(3 * LEAST_STEPS * 10 / 3 / 60 / 0.85) + 1}" in str(refused.value.hint)
    assert not (tmp_path / "ladder").exists()


@pytest.mark.parametrize("text", ["", "5M", "x,1M", "0,1M", "nan,1M", "-1M,2M", "1M,1M", "1e99,1M"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--sizes"):
        parse_sizes(text)


def test_sizes() -> None:
    assert parse_sizes("2M, 0.5M,800k") == [500_000, 800_000, 2_000_000]


@pytest.mark.parametrize("size", [0.5e6, 1e6, 2e6, 5e6, 50e6])
def test_a_rung_is_the_shape_made_smaller(size: float) -> None:
    model = ModelConfig(dim=768, n_layers=12, n_heads=12, n_kv_heads=4, vocab_size=32_000, qk_norm=True)
    rung = smaller(model, size)
    assert count_block_matrices(rung) == pytest.approx(size, rel=0.25)
    assert rung.qk_norm
    assert rung.vocab_size == 32_000
    assert rung.n_layers / rung.dim == pytest.approx(12 / 768, rel=0.35)
    assert products(rung) == count_block_matrices(rung) + 32_000 * rung.dim
    assert smaller(model, count_block_matrices(model)) == model


def test_a_rungs_schedule_is_its_own() -> None:
    config = TrainConfig.model_validate({"max_iters": 9000, "lr_decay_iters": 9000, "warmup_iters": 200})
    rung = rung_config(config, config.model, 60, 2.0)
    assert (rung.max_iters, rung.lr_decay_iters, rung.warmup_iters) == (60, None, 6)
    assert (rung.learning_rate, rung.min_lr) == (2 * config.learning_rate, 2 * config.min_lr)
