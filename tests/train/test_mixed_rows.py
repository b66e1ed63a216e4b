"""Rows of several stores: the shares are exact, each store keeps its own order, and a run that was stopped goes on."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_process import last_step, wait_until

from mini_llm.config import dump_config, load_config
from mini_llm.data.mixture import Mixture
from mini_llm.data.prepare import prepare
from mini_llm.data.store_shares import BLOCK, StoreShare
from mini_llm.errors import UserError
from mini_llm.plan.report import make_plan
from mini_llm.train.config import TrainConfig
from mini_llm.train.dry_run import dry_run
from mini_llm.train.evaluate import HeldOutLoss
from mini_llm.train.evaluate_mixture import MixedLoss
from mini_llm.train.objective import Pretraining
from mini_llm.train.rows.dataloader import TrainLoader
from mini_llm.train.rows.mixed_rows import MixedLoader, loader_of
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.train import train

WEIGHTS = (3.0, 1.0)


@pytest.fixture
def mixture(tiny_store: Path, second_store: Path) -> Mixture:
    paths = (tiny_store, second_store)
    return Mixture.open([StoreShare(path=str(p), weight=w) for p, w in zip(paths, WEIGHTS, strict=True)])


@pytest.fixture
def mixed(tiny_store: Path, second_store: Path) -> str:
    """The setting as a command line has it."""
    weights = zip((tiny_store, second_store), WEIGHTS, strict=True)
    return json.dumps([{"path": str(path), "weight": weight} for path, weight in weights])


def loader(mixture: Mixture, *, rows_per_step: int = 7, seed: int = 5, align: bool = False) -> MixedLoader:
    found = loader_of(mixture, block_size=32, rows_per_step=rows_per_step, seed=seed, align_documents=align)
    assert isinstance(found, MixedLoader)
    return found


def as_bytes(row: torch.Tensor) -> bytes:
    return row.numpy().tobytes()


def alone(mixture: Mixture, index: int, n_rows: int, *, align: bool = False) -> torch.Tensor:
    """Return the first rows of one store as a run of it alone sees them."""
    split = mixture.stores[index].split("train")
    return TrainLoader(split, block_size=32, rows_per_step=n_rows, seed=5, align_documents=align).rows(0)


@pytest.mark.parametrize("align", [False, True])
def test_each_store_has_its_part_of_every_block_and_its_rows_in_the_order_they_have_alone(
    mixture: Mixture, align: bool
) -> None:
    rows = loader(mixture, rows_per_step=BLOCK, align=align)
    blocks = torch.cat([rows.rows(0), rows.rows(1)])
    parts = [list(map(as_bytes, alone(mixture, i, 2 * n, align=align))) for i, n in ((0, 750), (1, 250))]
    common = set(parts[0]) & set(parts[1])  # speeches begin alike
    assert len(common) <= 1
    for part in parts:
        mine = set(part) - common
        found = [[row for row in map(as_bytes, block) if row in mine] for block in blocks.split(BLOCK)]
        assert [len(one) for one in found] == pytest.approx([len(part) / 2] * 2, abs=len(common))
        assert [row for one in found for row in one] == [row for row in part if row not in common]
    assert rows.epochs(2 * BLOCK) == pytest.approx(
        {name: 2 * part / x.rows_per_epoch for name, part, x in zip(rows.names, (750, 250), rows.loaders, strict=True)}
    )


def test_rows_are_a_function_of_the_seed_and_their_number(mixture: Mixture) -> None:
    """Whatever was asked before, however large the steps are: across blocks, and epochs of the stores."""
    whole = loader(mixture, rows_per_step=9000).rows(0)
    sevens = loader(mixture, rows_per_step=7)
    for step in (1200, 3, 142, 143, 0):
        torch.testing.assert_close(sevens.rows(step), whole[7 * step : 7 * step + 7])
    assert loader(mixture).epochs(8400)[mixture.names[1]] > 1  # its second epoch has begun
    assert not torch.equal(loader(mixture, seed=6).rows(0), whole[:7])


def test_the_places_of_a_store_are_spread_over_the_block(mixture: Mixture) -> None:
    stores, _ = loader(mixture)._places(0)
    others, _ = loader(mixture)._places(1)
    assert all(20 < part.sum() < 80 for part in np.split(stores, 5))  # 50 expected
    assert not (stores == others).all()


def test_steps_of_another_size_go_on_at_the_very_next_row(mixture: Mixture) -> None:
    first, second = loader(mixture, rows_per_step=7), loader(mixture, rows_per_step=3)
    second.continue_at(200, first.epoch(200))
    torch.testing.assert_close(second.rows(200), first.rows(200)[:3])
    assert second.first_row + 200 * 3 == first.first_row + 200 * 7


def test_held_out_loss_is_that_of_a_text_mixed_by_the_weights() -> None:
    ln2 = math.log(2)
    # A token of `a` has 4 bytes and 2 bits, one of `b` 2 bytes and 6 bits.
    found = MixedLoss([("a", 750, HeldOutLoss(2 * ln2, 0.5, 10)), ("b", 250, HeldOutLoss(6 * ln2, 3.0, 10))])
    assert found.loss == pytest.approx(0.75 * 2 * ln2 + 0.25 * 6 * ln2)
    assert found.bits_per_byte == pytest.approx((0.75 * 2 + 0.25 * 6) / (0.75 * 4 + 0.25 * 2))
    assert found.metrics()["val_loss/b"] == pytest.approx(6 * ln2)
    assert "(a 1.3863, b 4.1589)" in found.describe()


def test_a_run_says_the_epochs_and_the_held_out_loss_of_each(settings, mixed, mixture, run_cli, tmp_path) -> None:
    words = settings(data_dir=mixed, max_iters=4, eval_interval=4, eval_iters=5)
    result = run_cli("train", *words)
    assert result.returncode == 0, result.stderr
    rows, names = read_metrics(tmp_path / "run"), mixture.names
    last = [row for row in rows if "loss" in row][-1]
    epochs = MixedLoader(mixture, block_size=32, rows_per_step=4, seed=1337, align_documents=False).epochs(16)
    assert {name: last[f"epoch/{name}"] for name in names} == epochs
    held_out = [row for row in rows if "val_loss" in row][-1]
    each = [held_out[f"val_loss/{name}"] for name in names]
    assert held_out["val_loss"] == pytest.approx(0.75 * each[0] + 0.25 * each[1])
    assert each[0] != each[1]

    assert "first loss" in dry_run(load_config(TrainConfig, None, words))
    assert make_plan(load_config(TrainConfig, None, words), gpu="h100").own_tokens == 4 * 4 * 32
    assert run_cli("report", tmp_path / "run").returncode == 0
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "share of the rows" in page
    assert "75.0%" in page
    again = load_config(TrainConfig, tmp_path / "run" / "config.yaml")
    assert load_config(TrainConfig, None, words).data_dir == again.data_dir
    assert "weight: 3.0" in dump_config(again)
    result = run_cli("eval", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("(held out)") == 2


def test_a_store_without_held_out_text_is_left_out_of_that_loss(
    settings, tiny_store, second_store, capsys, tmp_path
) -> None:
    bare = tmp_path / "bare"
    prepare([second_store.parent / "texts"], tiny_store / "tokenizer", bare, val_fraction=0, workers=1)
    both = json.dumps([{"path": str(tiny_store), "weight": 1}, {"path": str(bare), "weight": 1}])
    train(load_config(TrainConfig, None, settings(data_dir=both, max_iters=2, eval_interval=2)))
    assert "without held-out text, and so left out of the held-out loss: bare" in capsys.readouterr().err
    row = next(row for row in read_metrics(tmp_path / "run") if "val_loss" in row)
    assert row["val_loss"] == row["val_loss/tokens"]
    config = load_config(TrainConfig, None, settings(data_dir=json.dumps([{"path": str(bare), "weight": 1}])))
    with pytest.raises(UserError, match="has no val split"):
        Pretraining(config).evaluator  # noqa: B018


def test_stopped_and_gone_on_with_it_ends_with_the_same_bits(settings, mixed, start, tmp_path) -> None:
    def words(run: Path) -> list[str]:
        return settings(run, data_dir=mixed, max_iters=60, eval_interval=20, save_interval=10, model={"dropout": 0.1})

    unbroken = train(load_config(TrainConfig, None, words(tmp_path / "unbroken")))
    run = tmp_path / "broken"
    process = start("train", *words(run))
    wait_until(lambda: (run / "latest").exists() and last_step(run) >= 12, process.process.is_alive)
    process.kill()
    process.wait(60)
    train(load_config(TrainConfig, None, words(run)))
    for name in ("metrics.jsonl", "latest/model.safetensors", "latest/training_state/optimizer.safetensors"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_other_weights_are_told_and_learned_from_the_next_step_on(
    settings, mixed, tiny_store, second_store, capsys, tmp_path
) -> None:
    train(load_config(TrainConfig, None, settings(data_dir=mixed, max_iters=10, lr_decay_iters=20)))
    turned = json.dumps([{"path": str(tiny_store), "weight": 1}, {"path": str(second_store), "weight": 3}])
    train(load_config(TrainConfig, None, settings(data_dir=turned, max_iters=20, lr_decay_iters=20)))
    told = capsys.readouterr().err
    assert "changed since the run began: data_dir" in told
    assert "another text" in told
    assert last_step(tmp_path / "run") == 20
