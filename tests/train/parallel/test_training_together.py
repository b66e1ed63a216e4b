"""Several processes train what one would: the same rows, the same loss, one set of files, one moment to stop."""

import json
import math
import signal
from pathlib import Path

import pytest
from cli_process import last_step, wait_until

from mini_llm.train.run.metrics import read_metrics
from mini_llm.weights import read_tensors

STEPS = 20
SHAPE = {"tie_embeddings": "false"}  # so that tensor parallel can take part


def losses(run: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in read_metrics(run) if key in row]


def finish(ranks, code: int = 0) -> None:
    for process in ranks:
        assert process.wait(60) == code, process.stderr


@pytest.fixture(scope="module")
def alone(tiny_store, tmp_path_factory):
    """Return `alone(words)`: the run of one process with these settings, made once."""
    from mini_llm.config import load_config
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.train import train

    made = {}

    def run(words: list[str]) -> Path:
        words = [word for word in words if not word.startswith(("out_dir=", "parallel."))]
        if tuple(words) not in made:
            folder = tmp_path_factory.mktemp("alone") / "run"
            made[tuple(words)] = train(load_config(TrainConfig, None, [*words, f"out_dir={folder}"]))
        return made[tuple(words)]

    return run


@pytest.fixture
def words(settings):
    """Return `words(run, **changes)`: 20 steps of 8 rows, evaluated and sampled at the end."""

    def make(run: Path, **changes) -> list[str]:
        values = {"max_iters": STEPS, "eval_interval": STEPS, "gradient_accumulation_steps": 2, "compile": False}
        return settings(run, SHAPE, **{**values, **changes})

    return make


@pytest.mark.parametrize(
    ("spread", "size"),
    [
        (["parallel.shard=ddp"], 2),
        (["parallel.shard=full"], 2),
        (["parallel.tensor=2"], 2),
        (["parallel.shard=hybrid", "parallel.tensor=2"], 4),
    ],
    ids=["ddp", "full", "tensor", "hybrid-tensor"],
)
def test_they_learn_what_one_process_learns(spread, size, words, alone, start_ranks, tmp_path) -> None:
    given = [*words(tmp_path / "run", align_documents=True), *spread]
    ranks = start_ranks(size, "train", *given)
    finish(ranks)
    one = alone(given)
    for key in ("loss", "val_loss", "tokens"):
        assert losses(tmp_path / "run", key) == pytest.approx(losses(one, key), rel=0, abs=1e-5), key
    assert len(losses(tmp_path / "run")) == STEPS  # one process writes
    assert "step" in ranks[0].stderr
    assert [process.stderr for process in ranks[1:]] == [""] * (size - 1)  # and one speaks
    assert json.loads((tmp_path / "run" / "latest" / "checksums.json").read_text())["model.safetensors"]


def test_a_mixture_of_stores_is_the_same_for_all(words, alone, start_ranks, tiny_store, second_store, tmp_path) -> None:
    mixed = json.dumps([{"path": str(tiny_store), "weight": 2}, {"path": str(second_store), "weight": 1}])
    given = [*words(tmp_path / "run", data_dir=mixed), "parallel.shard=full"]
    finish(start_ranks(2, "train", *given))
    one = alone(given)
    for key in ("loss", "val_loss", "val_loss/others", "tokens"):
        assert losses(tmp_path / "run", key) == pytest.approx(losses(one, key), rel=0, abs=1e-5), key
    assert losses(tmp_path / "run", "epoch/others") == losses(one, "epoch/others")


@pytest.mark.parametrize("spread", [["parallel.shard=ddp"], ["parallel.shard=full"]], ids=["ddp", "full"])
def test_muon_learns_what_it_learns_alone(spread, words, alone, start_ranks, tmp_path) -> None:
    """Muon makes all directions equally strong, rounding among them: a tenth of the digits is lost in 20 steps."""
    given = [*words(tmp_path / "run", optimizer="muon", weight_average=0.5, cautious_decay=True), *spread]
    finish(start_ranks(2, "train", *given))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone(given)), rel=0, abs=1e-4)
    assert losses(tmp_path / "run", "val_loss") == pytest.approx(losses(alone(given), "val_loss"), rel=0, abs=1e-4)


def test_the_same_job_gives_the_same_bits_also_when_it_was_stopped(words, start_ranks, tmp_path) -> None:
    """One of two gets a signal; both stop after the same step, and go on to the same bits; dropout included."""
    given = ["parallel.shard=full", "model.dropout=0.1", "save_interval=100", "parallel.checkpoint_activations=true"]
    finish(start_ranks(2, "train", *words(tmp_path / "unbroken"), *given))
    run = tmp_path / "stopped"
    ranks = start_ranks(2, "train", *words(run), *given)
    wait_until(lambda: last_step(run) >= 3, ranks[0].process.is_alive)
    ranks[1].kill(signal.SIGTERM)
    finish(ranks, code=143)
    stopped_at = last_step(run)
    assert 3 <= stopped_at < STEPS
    assert (run / "latest").resolve().name == f"step-{stopped_at:08d}"
    finish(start_ranks(2, "train", *words(run), *given))
    for name in ("metrics.jsonl", "latest/model.safetensors", "latest/training_state/optimizer.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name


def test_one_then_two_then_one_then_four_processes_go_on_with_one_run(words, alone, start_ranks, tmp_path) -> None:
    """The rows are the same, and what is loaded is what was saved, bit for bit, whole or in shares."""
    run = tmp_path / "run"
    base = words(run, lr_decay_iters=STEPS, save_interval=5, keep_last=9)
    stages = (
        (1, 5, []),
        (2, 10, ["parallel.shard=full", "parallel.gather_up_to=0"]),
        (1, 15, []),
        (4, 20, ["parallel.shard=full", "parallel.tensor=2", "parallel.gather_up_to=0"]),
    )
    for size, until, spread in stages:
        finish(start_ranks(size, "train", *base, *spread, f"max_iters={until}"))
    one = alone(words(run, lr_decay_iters=STEPS, save_interval=5, keep_last=9))
    assert losses(run) == pytest.approx(losses(one), rel=0, abs=1e-5)
    assert [row["tokens"] for row in read_metrics(run) if "tokens" in row] == losses(one, "tokens")
    assert (run / "checkpoints" / "step-00000010" / "shares").is_dir()
    assert (run / "checkpoints" / "step-00000015" / "model.safetensors").is_file()


def test_a_dry_run_of_several_tells_what_each_needs_and_writes_nothing(words, start_ranks, tmp_path) -> None:
    files = {rank: str(tmp_path / f"out-{rank}") for rank in (0, 1)}
    out = {rank: f"import sys; sys.stdout = open({file!r}, 'w', buffering=1)" for rank, file in files.items()}
    finish(start_ranks(2, "train", *words(tmp_path / "run"), "parallel.shard=full", "--dry-run", before=out))
    told = (tmp_path / "out-0").read_text()
    assert "in each of 2 processes" in told
    assert "weights 127 kB, gradients 127 kB, optimizer 255 kB" in told  # half of what one process has
    assert "of 764 kB, of which" in told  # a checkpoint is whole
    assert (tmp_path / "out-1").read_text() == ""
    assert not (tmp_path / "run").exists()


def test_loading_changes_no_bit(words, start_ranks, run_cli, tmp_path) -> None:
    """Two processes save shares; one loads them and saves at once: the weights are those that --consolidate finds."""
    run = tmp_path / "run"
    shares = ["parallel.shard=full", "parallel.gather_up_to=0", "optimizer=muon"]
    finish(start_ranks(2, "train", *words(run, max_iters=3, lr_decay_iters=9), *shares))
    result = run_cli("export", run, "--consolidate", "--out", tmp_path / "whole")
    assert result.returncode == 0, result.stderr
    before = read_tensors(tmp_path / "whole" / "model.safetensors")
    still = {"learning_rate": 0, "min_lr": 0, "muon_learning_rate": 0}
    finish(start_ranks(1, "train", *words(run, max_iters=4, lr_decay_iters=9, optimizer="muon", **still)))
    after = read_tensors(run / "latest" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_memory_that_one_lacks_is_found_before_the_first_step_and_all_take_less(words, start_ranks, tmp_path) -> None:
    lacks = """
import mini_llm.train.objective as objective
whole = objective.rows_loss_sum
def limited(model, rows, *more):
    if len(rows) > 2:
        raise RuntimeError("CUDA out of memory, says the test")
    return whole(model, rows, *more)
objective.rows_loss_sum = limited
"""
    ranks = start_ranks(
        2, "train", *words(tmp_path / "run", auto_batch=True, max_iters=3), "parallel.shard=ddp", before={1: lacks}
    )
    finish(ranks)
    assert "auto_batch goes on with batch_size=2" in ranks[0].stderr
    assert len(losses(tmp_path / "run")) == 3


def test_fine_tuning_is_spread_alike(random_model, tiny_store, start_ranks, tmp_path) -> None:
    from mini_llm.checkpoint import save_model
    from mini_llm.tokenizer.tokenizer import Tokenizer

    save_model(tmp_path / "base", random_model(vocab_size=512, n_heads=4), Tokenizer.load(tiny_store / "tokenizer"))
    chat = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n * 7}."}]}
        for n in range(60)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chat), encoding="utf-8")
    given = ["sft", "--base", tmp_path / "base", "--data", tmp_path / "chat.jsonl", "batch_size=2", "block_size=64"]
    given += ["gradient_accumulation_steps=2", "max_iters=5", "epochs=null", "log_interval=1", "compile=false"]
    given += ["device=cpu", "dtype=float32", "val_fraction=0.2"]
    finish(start_ranks(1, *given, f"out_dir={tmp_path / 'one'}"))
    for shard in ("ddp", "full"):
        finish(start_ranks(2, *given, f"out_dir={tmp_path / shard}", f"parallel.shard={shard}"))
        for key in ("loss", "val_loss"):
            assert losses(tmp_path / shard, key) == pytest.approx(losses(tmp_path / "one", key), abs=1e-5), shard
        assert all(math.isfinite(loss) for loss in losses(tmp_path / shard))
