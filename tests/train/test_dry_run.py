"""The dry run says what a run would take, and writes nothing."""

import mmap
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mini_llm import log
from mini_llm.device import forget_peak_memory, memory_gb
from mini_llm.errors import UsageError, UserError
from mini_llm.train import dry_run as dry_run_module
from mini_llm.train import step as step_module
from mini_llm.train.config import TrainConfig
from mini_llm.train.dry_run import count_looks, dry_run
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]


def test_the_command_reports_and_writes_nothing(settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    before = set(tmp_path.iterdir())
    words = settings(max_iters=1000, eval_interval=300, save_interval=200, keep_last=2)
    result = run_cli("train", "--dry-run", *words, env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert set(tmp_path.iterdir()) == before
    assert "47,264 parameters (2 layers x 32) on cpu, float32" in result.stdout
    assert "128 tokens" in result.stdout
    assert re.search(r"first loss +6\.2\d", result.stdout)  # ln 512 = 6.24
    assert re.search(
        r"memory +\d.* [MG]B at the peak: weights 189 kB, gradients 189 kB, optimizer 378 kB", result.stdout
    )
    assert "1,000 steps" in result.stdout
    assert "5 evaluations" in result.stdout  # 0, 300, 600, 900, 1000
    assert re.search(r"checkpoints +7 of 56\d kB, of which at most 3 stay", result.stdout)  # and 200, 400, 800


def test_checkpoints_and_evaluations_are_those_of_the_run(make_config: MakeConfig) -> None:
    config = make_config(max_iters=11, eval_interval=3, save_interval=5, keep_last=100, eval_iters=1)
    text = dry_run(config)
    run = train(config)
    from mini_llm.pointers import list_checkpoints
    from mini_llm.train.run.metrics import read_metrics

    assert f"{len(list_checkpoints(run))} of" in text
    assert f"{sum('val_loss' in row for row in read_metrics(run))} evaluations" in text
    shutil.rmtree(run / "checkpoints/step-00000011")
    shutil.rmtree(run / "checkpoints/step-00000010")
    text = dry_run(config)  # from step 9 on, which is evaluated again
    assert "2 steps" in text
    assert "2 evaluations" in text
    assert "(from step 9 on)" in text
    assert re.search(r"checkpoints +2 of", text)


@pytest.mark.parametrize("first", [0, 1, 6, 10, 11, 30, 31, 40])
@pytest.mark.parametrize(("by_eval", "by_save"), [(1, 1), (5, 3), (4, 6), (10, 10), (31, 7), (50, 50)])
def test_looks_are_counted_without_a_list_of_them(by_eval: int, by_save: int, first: int) -> None:
    config = TrainConfig(max_iters=31, warmup_iters=1, eval_interval=by_eval, save_interval=by_save)
    evaluated = [step for step in range(first, 32) if step % by_eval == 0 or step == 31]
    saved = [step for step in range(first + 1, 32) if 0 in (step % by_eval, step % by_save) or step == 31]
    assert count_looks(config, first) == (len(evaluated), len(saved))
    longest = config.model_copy(update={"max_iters": 10**9, "eval_interval": 1})
    assert count_looks(longest, 0) == (10**9 + 1, 10**9)


def test_too_little_memory_names_the_keys_or_halves(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = step_module.Stepper._backward

    def limited(self: step_module.Stepper, step: int) -> float:
        if self.config.batch_size > 1:
            raise MemoryError
        return backward(self, step)

    monkeypatch.setattr(step_module.Stepper, "_backward", limited)
    with pytest.raises(UserError, match="out of memory with batch_size=4") as problem:
        dry_run(make_config())
    assert "batch_size=2 gradient_accumulation_steps=2" in (problem.value.hint or "")
    assert "batch_size=1 gradient_accumulation_steps=4 eval_iters=8" in dry_run(make_config(auto_batch=True))
    assert not os.path.exists(make_config().out_dir)


def test_a_disk_too_small_is_told_before(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    monkeypatch.setattr(dry_run_module.shutil, "disk_usage", lambda _: Usage(1_000_000))
    dry_run(make_config())
    assert "milestones   4 of " in dry_run(make_config(milestones=True))
    told = [re.search(r"free, the checkpoints need about ([0-9.]+) ([kM]B)", line) for line in said]
    units = {"kB": 1e3, "MB": 1e6}
    alone, with_milestones = (float(found[1]) * units[found[2]] for found in told if found)
    assert with_milestones > alone  # 4 times 2 bytes a parameter more


def test_it_refuses_the_folder_of_another_run(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config())
    with pytest.raises(UsageError, match="holds a run of another model"):
        dry_run(make_config(model={"n_layers": 1}))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        dry_run(make_config(tmp_path / "file"))


def test_it_finds_tokens_that_have_changed(tiny_store: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    shutil.copytree(tiny_store, tokens)
    shard = tokens / "train-00000.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    with pytest.raises(UserError, match=r"train-00000\.bin was changed"):
        dry_run(make_config(data_dir=tokens))


def test_memory_of_an_attempt_that_failed_does_not_count(make_config: MakeConfig) -> None:
    cpu = torch.device("cpu")
    big = mmap.mmap(-1, 2**29)
    big.write(bytes(2**29))
    before = memory_gb(cpu)
    big.close()
    forget_peak_memory(cpu)
    assert memory_gb(cpu) < before - 0.3


@pytest.mark.parametrize("changes", [{"data_dir": "/nonexistent"}, {"device": "abacus"}, {"model": {"vocab_size": 5}}])
def test_it_finds_what_training_would_find(changes: dict[str, Any], make_config: MakeConfig) -> None:
    with pytest.raises(UserError):
        dry_run(make_config(**changes))
