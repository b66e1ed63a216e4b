"""Tasks while training: in the metrics, always the same items, and never a reason for a run to end or to differ."""

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest

from mini_llm.config import load_config
from mini_llm.errors import UserError
from mini_llm.eval.while_training import TaskProbe, task_probe
from mini_llm.plot.curves import read_runs
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.train import train


@pytest.fixture
def make_config(tiny_store: Path, tmp_path: Path, sets: Path) -> Any:
    def make(out: str, **changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "data_dir": tiny_store,
            "out_dir": tmp_path / out,
            "batch_size": 4,
            "block_size": 32,
            "max_iters": 8,
            "warmup_iters": 2,
            "eval_interval": 4,
            "eval_iters": 1,
            "save_interval": 4,
            "log_interval": 4,
            "device": "cpu",
            "dtype": "float32",
            "compile": "false",
            "eval_tasks": "[piqa, lambada, blimp]",
            "eval_tasks_interval": 4,
            "eval_tasks_items": 10,
            "eval_tasks_data": f"[{sets}]",
            **changes,
        }
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "max_seq_len": 64}
        return load_config(
            TrainConfig, None, [*(f"{k}={v}" for k, v in values.items()), *(f"model.{k}={v}" for k, v in shape.items())]
        )

    return make


def weights(config: TrainConfig, step: int) -> Path:
    return Path(config.out_dir) / "checkpoints" / f"step-{step:08}" / "model.safetensors"


def test_tasks_are_in_metrics_display_and_plots_and_change_no_bit(
    make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, plain = make_config("asked"), make_config("plain", eval_tasks="[]")
    train(asked, make_probe=task_probe)
    assert "step 4: piqa " in capsys.readouterr().err
    train(plain, make_probe=task_probe)
    assert filecmp.cmp(weights(asked, 8), weights(plain, 8), shallow=False)
    rows = [row for row in read_metrics(Path(asked.out_dir)) if "tasks/piqa/acc" in row]
    assert [row["step"] for row in rows] == [4, 8]
    assert {"tasks/piqa/acc_norm_stderr", "tasks/lambada_openai/perplexity", "tasks/blimp/acc"} <= rows[0].keys()
    (run,) = read_runs([Path(asked.out_dir)])
    assert run.tasks["piqa"].values[-1] == rows[-1]["tasks/piqa/acc_norm"]
    assert "tasks" in run.summary()


def test_a_resumed_run_has_the_same_lines(make_config: Any) -> None:
    whole, parts = make_config("whole"), make_config("parts")
    train(whole, make_probe=task_probe)
    train(make_config("parts", max_iters=4, lr_decay_iters=8), make_probe=task_probe)
    train(parts, make_probe=task_probe)
    lines = [
        [json.dumps(row) for row in read_metrics(Path(config.out_dir)) if "tasks/piqa/acc" in row]
        for config in (whole, parts)
    ]
    assert lines[0] == lines[1]
    assert filecmp.cmp(weights(whole, 8), weights(parts, 8), shallow=False)


@pytest.mark.parametrize("problem", [RuntimeError("CUDA out of memory"), UserError("the set is gone"), MemoryError()])
def test_a_failing_evaluation_is_a_warning(
    problem: Exception, make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise problem

    config = make_config("failing")
    monkeypatch.setattr(TaskProbe, "run", fail)
    train(config, make_probe=task_probe)
    assert weights(config, 8).is_file()
    assert capsys.readouterr().err.count("training goes on") == 2


def test_a_signal_in_the_middle_saves(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    from mini_llm.errors import Interrupted

    run = TaskProbe.run

    def interrupted(self: TaskProbe, model: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return run(self, model)

    config = make_config("interrupted")
    monkeypatch.setattr(TaskProbe, "run", interrupted)
    with pytest.raises(Interrupted):
        train(config, make_probe=task_probe)
    assert weights(config, 4).is_file()


def test_what_is_missing_is_said_before_the_first_step(make_config: Any, tiny_store: Path) -> None:
    tokenizer = Tokenizer.load(tiny_store / "tokenizer")
    with pytest.raises(UserError, match="did you mean 'piqa'"):
        task_probe(make_config("x", eval_tasks="[pika]"), tokenizer)
    with pytest.raises(UserError, match="no such file or folder"):
        task_probe(make_config("x", eval_tasks_data="[nowhere]"), tokenizer)


def test_the_draw_is_fixed(make_config: Any, tiny_store: Path) -> None:
    tokenizer = Tokenizer.load(tiny_store / "tokenizer")
    numbers = [
        [item.number for item in TaskProbe(make_config("x", seed=seed), tokenizer).questions[0].items]
        for seed in (1, 1, 2)
    ]
    assert numbers[0] == numbers[1] != numbers[2]
    assert len(numbers[0]) == 10
