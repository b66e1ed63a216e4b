"""The race to a loss: the target is the tuned nanoGPT's, who misses it gets more, who is there gets less."""

import argparse
import importlib
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mini_llm.data.token_store import TokenStore
from mini_llm.train.config import TrainConfig
from mini_llm.train.objective import Pretraining

MODULES = ("time_to_loss", "_time_to_loss_contenders", "_time_to_loss_pace", "_time_to_loss_picture")


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    yield importlib.import_module("time_to_loss")
    for name in MODULES:
        sys.modules.pop(name, None)


class Given:
    """Losses that are given: nanoGPT ends at 4.0 with its best rate, others learn along a line of log tokens."""

    size, budget = "toy", 1_000_000

    def __init__(self, at_target: dict[str, float], best: dict[str, float]) -> None:
        self.at_target, self.best = at_target, best
        self.asked: list[tuple[str, float, float, int]] = []

    def run(self, name: str, share: float, factor: float, seed: int) -> dict[str, Any]:
        self.asked.append((name, share, factor, seed))
        tokens = round(share * self.budget)
        away = abs(math.log2(factor / self.best[name]))
        loss = 4.0 - 0.5 * math.log(share / self.at_target[name]) + 0.3 * away
        return {
            "loss": loss, "tokens": tokens, "parameters": 10**6, "curve": [[tokens // 2, 5.0]],
        }  # fmt: skip


def test_the_verdict(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = {"nanogpt": 1.0, "mini-llm": 0.2, "nanochat": 0.5, "transformers": 50.0, "litgpt": 0.001}
    given = Given(at, {"nanogpt": 4.0, "mini-llm": 1.0, "nanochat": 0.5, "transformers": 1.0, "litgpt": 1.0})
    args = argparse.Namespace(seeds=2, sweep=[0.5, 1.0, 2.0])
    found = benchmark.measure(given, ["mini-llm", "nanochat", "transformers", "litgpt"], args)
    assert found["target"] == pytest.approx(4.0)
    contenders = found["contenders"]
    assert contenders["nanogpt"]["factor"] == 4.0  # beyond the edge of the sweep that was asked for
    assert contenders["nanochat"]["factor"] == 0.5
    assert contenders["mini-llm"]["tokens"]["each"] == pytest.approx([200_000] * 2, rel=1e-3)
    assert contenders["nanochat"]["tokens"]["mean"] == pytest.approx(500_000, rel=1e-3)
    assert contenders["litgpt"]["is_at_most"]
    assert not contenders["mini-llm"]["is_at_most"]
    assert "transformers" in found["skipped"]
    few, many = contenders["mini-llm"]["budgets"]
    assert few < 200_000 < many <= few * 1.61
    assert {seed for name, _, _, seed in given.asked if name == "nanochat"} == {1, 2}
    benchmark.show("toy", found)
    shown = capsys.readouterr().out
    assert "5.00x" in shown
    assert "≤ " in shown
    assert "seconds" not in shown  # nothing was timed yet
    pace = {"step_seconds": 2.0, "building": 3.0, "compiling": 9.0}
    for name, about in contenders.items():
        benchmark.add_seconds(about, pace | {"building": 203.0} if name == "nanogpt" else pace, 2000)
    assert contenders["mini-llm"]["seconds"]["each"] == pytest.approx([203.0] * 2, rel=1e-3)
    benchmark.show("toy", found)
    assert "5.93x" in capsys.readouterr().out  # 1,203 seconds against 203
    benchmark.draw({"toy": found}, tmp_path / "picture.svg")
    assert "held-out loss" in (tmp_path / "picture.svg").read_text()


def test_all_see_our_rows(benchmark: Any, tiny_store: Path) -> None:
    """The rows that the others get are those that a run of ours with that seed trains on, in its order."""
    store = TokenStore.open(tiny_store)
    rows = benchmark.rows_in_order(store, argparse.Namespace(block=32, batch=4), 3, 5)
    model = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 512, "max_seq_len": 32}
    ours = Pretraining(
        TrainConfig.model_validate(
            {"data_dir": str(tiny_store), "seed": 3, "batch_size": 4, "block_size": 32, "model": model}
        )
    )
    for step in range(5):
        assert (torch.from_numpy(rows[4 * step : 4 * step + 4]) == ours.rows(step)).all()


@pytest.fixture
def job(benchmark: Any, tiny_store: Path, repository: Path, tmp_path: Path) -> argparse.Namespace:
    store, asked = TokenStore.open(tiny_store), argparse.Namespace(block=32, batch=4, eval_rows=8)
    np.save(tmp_path / "rows.npy", benchmark.rows_in_order(store, asked, 1, 6))
    np.save(tmp_path / "held-out.npy", benchmark.held_out_rows(store, asked))
    return argparse.Namespace(
        contender="mini-llm", layers=1, dim=32, heads=2, vocab=512, batch=4, block=32, steps=6, seed=1, factor=1.0,
        device="cpu", points=3, curve_rows=4, own_rows=True, settings=["compile=false"], store=str(tiny_store),
        rows=str(tmp_path / "rows.npy"), held_out=str(tmp_path / "held-out.npy"), checkout="",
        config=str(repository / "configs" / "demo.yaml"),
    )  # fmt: skip


def test_a_run_of_ours(benchmark: Any, job: argparse.Namespace) -> None:
    contenders = importlib.import_module("_time_to_loss_contenders")
    found = contenders.run(job)
    assert found["tokens"] == 6 * 4 * 32
    assert 3 < found["loss"] < 6.5
    assert [tokens for tokens, _ in found["curve"]] == [2 * 128, 4 * 128]


def test_the_pace(benchmark: Any, job: argparse.Namespace, tmp_path: Path) -> None:
    """Two contenders in turns, each in a process of its own: so many steps a round, kept, and measured once."""

    class Some(benchmark.Runs):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.args = argparse.Namespace(device="cpu", pace=3, rounds=2, compile=False)
            self.size, self.kept_paces = "toy", importlib.import_module("_harness").KeptRuns(tmp_path / "pace.jsonl")

        def known(self, name: str, share: float, factor: float, seed: int) -> list[Any]:
            return [name]

        def job(self, name: str, share: float, factor: float, seed: int) -> dict[str, Any]:
            return vars(job) | {"contender": name}

        def rows(self, seed: int, steps: int) -> Path:
            rows = np.load(job.rows)
            np.save(tmp_path / "more.npy", rows[np.arange(4 * steps) % len(rows)])
            return tmp_path / "more.npy"

    found = benchmark.paces(Some(), ["mini-llm", "transformers", "nanochat"])
    assert set(found) == {"mini-llm", "transformers"}  # the other has no checkout
    for about in found.values():
        assert len(about["each_round"]) == 2
        assert 0 < about["step_seconds"] < 5
        assert about["building"] > 0
    assert benchmark.paces(Some(), ["mini-llm", "transformers", "nanochat"]) == found


def test_a_run_of_a_checkout(
    benchmark: Any, job: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of nanoGPT's interface is trained at nanoGPT's schedule, on the rows, and looked at without training."""
    contenders = importlib.import_module("_time_to_loss_contenders")
    rates: list[float] = []

    class GPT(torch.nn.Module):
        def __init__(self, config: argparse.Namespace) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
            torch.nn.init.zeros_(self.table.weight)

        def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> Any:
            scores = self.table(ids)
            return scores, torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())

        def configure_optimizers(self, decay: float, rate: float, betas: Any, device: str) -> Any:
            assert (decay, rate, betas) == (0.1, 1e-3, (0.9, 0.95))
            optimizer = torch.optim.SGD(self.parameters(), lr=1000 * rate)
            optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
            return optimizer

    theirs = types.ModuleType("model")
    theirs.GPT, theirs.GPTConfig = GPT, argparse.Namespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model", theirs)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    job.contender, job.checkout = "nanogpt", str(tmp_path)
    found = contenders.run(job)
    assert rates == [contenders.cosine(step, 1, 6, 1e-3) for step in range(6)]
    assert max(rates) == rates[1] == 1e-3
    assert contenders.cosine(6, 1, 6, 1e-3) == pytest.approx(1e-4)
    assert found["loss"] < math.log(512)
    assert found["parameters"] == 512 * 512
    job.checkout = ""
    with pytest.raises(Exception, match="no checkout"):
        contenders.run(job)
