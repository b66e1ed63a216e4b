"""metrics.jsonl is what the arithmetic decided, line for line; other places get the same numbers."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.metrics import MetricsLog, read_metrics
from mini_llm.train.train import train

FAKE_WANDB = """
import json, os
class Run:
    def log(self, numbers, step): print(json.dumps(["log", step, numbers]), file=out, flush=True)
    def finish(self): print(json.dumps(["finish"]), file=out, flush=True)
def init(**settings):
    print(json.dumps(["init", settings]), file=out, flush=True)
    return Run()
out = open(os.environ["WANDB_FAKE_OUT"], "a")
"""

MakeConfig = Callable[..., TrainConfig]


def test_lines_are_cut_back_to_the_step_of_resuming(tmp_path: Path) -> None:
    config = TrainConfig()
    metrics = MetricsLog(tmp_path, config, 0)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 1.0 / step}, {"memory_gb": 0.5})
        metrics.write(step, {"val_loss": 2.0})
    metrics.close()
    whole = (tmp_path / "metrics.jsonl").read_text()
    MetricsLog(tmp_path, config, 2).close()
    kept = read_metrics(tmp_path)
    assert kept == [{"step": 1, "loss": 1.0}, {"step": 1, "val_loss": 2.0}, {"step": 2, "loss": 0.5}]
    assert whole.startswith((tmp_path / "metrics.jsonl").read_text())  # not a digit differs
    assert [row["step"] for row in read_metrics(tmp_path, "timing")] == [1, 2]
    MetricsLog(tmp_path, config, 0).close()
    assert read_metrics(tmp_path) == []


def test_a_half_written_line_ends_the_reading(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert read_metrics(tmp_path, "timing") == []


DAMAGED = [b'{"step": 2, "lo', b"\xff\xfe\0", b"7", b"null", b"[]", b'{"loss": 1.0}', b'{"step": "x"}', b"[" * 100_000]


@pytest.mark.parametrize("damage", DAMAGED, ids=[str(d[:15]) for d in DAMAGED])
def test_a_damaged_line_costs_itself_alone_and_is_named(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    sound = [b'{"step": 1, "loss": 2.0}', b'{"step": 3, "loss": 1.0}']
    (tmp_path / "metrics.jsonl").write_bytes(sound[0] + b"\n" + damage + b"\n" + sound[1] + b"\n")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    MetricsLog(tmp_path, TrainConfig(), 3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == sound
    assert any("metrics.jsonl: line 2 of" in line for line in said)


def test_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path, TrainConfig(), 0)
    metrics.write(1, {"loss": 2.0, "grad_norm": math.inf, "val_loss": math.nan})
    metrics.close()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": 2.0, "grad_norm": None, "val_loss": None}


def test_tensorboard_writes_the_same_numbers(make_config: MakeConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(make_config(tensorboard=True, max_iters=4, eval_interval=2, save_interval=2))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    rows = read_metrics(run)
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r["loss"] for r in rows if "loss" in r])
    assert [e.step for e in events.Scalars("val_bits_per_byte")] == [0, 2, 4]
    assert "tokens_per_second" in events.Tags()["scalars"]


def test_wandb_gets_the_numbers_and_goes_on_in_the_same_curve(settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(FAKE_WANDB)
    env = {"WANDB_FAKE_OUT": str(tmp_path / "wandb.txt"), "OMP_NUM_THREADS": "1"}
    for end in (2, 4):
        changes = {"wandb_log": True, "wandb_project": "p", "max_iters": end, "eval_interval": 2}
        result = run_cli("train", *settings(**changes), "wandb_run_name=a name", env=env, cwd=tmp_path / "modules")
        assert result.returncode == 0, result.stderr
    calls = [json.loads(line) for line in (tmp_path / "wandb.txt").read_text().splitlines()]
    first, second = (call[1] for call in calls if call[0] == "init")
    assert (first["project"], first["name"], first["resume"]) == ("p", "a name", "allow")
    assert first["config"]["model"]["dim"] == 32
    assert first["id"] == second["id"] != "run"  # other runs are called that too
    logged = [(call[1], set(call[2])) for call in calls if call[0] == "log"]
    assert logged[0] == (0, {"val_loss", "val_bits_per_byte"})
    assert logged[1][0] == 1
    assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "memory_gb"} <= logged[1][1]
    assert calls[-1] == ["finish"]


@pytest.mark.parametrize("key", ["wandb_log", "tensorboard"])
def test_a_library_that_is_missing_is_named(key: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=f"{key}=true needs") as problem:
        train(make_config(**{key: True}))
    assert "pip install" in (problem.value.hint or "")


def test_wandb_without_a_key_is_told(settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text("def init(**_): raise RuntimeError('No API key configured')\n")
    result = run_cli("train", *settings(wandb_log=True), cwd=tmp_path / "modules")
    assert result.returncode == 1
    assert "error: Weights & Biases does not start: No API key configured\nwandb login" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_was_deleted_meanwhile_is_told_and_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    metrics = MetricsLog(tmp_path / "run", TrainConfig(), 0)
    metrics.write(1, {"loss": 1.0})
    shutil.rmtree(tmp_path / "run")
    metrics.sync()
    metrics.write(2, {"loss": 0.5})
    metrics.close()
    assert "metrics.jsonl was deleted" in capsys.readouterr().err
    assert read_metrics(tmp_path / "run") == [{"step": 2, "loss": 0.5}]
