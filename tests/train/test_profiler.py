"""The profile: a trace that can be opened, a table that adds up, and the same training."""

import gzip
import json
from collections.abc import Callable

import pytest
import torch

from mini_llm import log
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.profiler import time_by_kind, time_table
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]


def test_the_command_writes_a_trace_and_shows_where_time_goes(settings, make_config, tmp_path, run_cli) -> None:  # type: ignore[no-untyped-def]
    result = run_cli("train", *settings(profile=True), env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    table = (run / "profile" / "table.txt").read_text()
    assert table.strip() in result.stderr
    for kind in ("matrix products", "attention", "optimizer", "elementwise", "loader", "softmax and loss"):
        assert kind in table
    shares = [float(line.split("%")[0].split()[-1]) for line in table.splitlines()[1:]]
    assert sum(shares) == pytest.approx(100, abs=1.0)
    trace = json.loads(gzip.decompress((run / "profile" / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "mini_llm: batch" in names
    assert any("Optimizer.step" in str(name) for name in names)
    plain = train(make_config(tmp_path / "plain"))
    for name in ("metrics.jsonl", "latest/model.safetensors"):
        assert (run / name).read_bytes() == (plain / name).read_bytes()


def test_time_goes_to_the_right_kind_once() -> None:
    x = torch.randn(256, 256, requires_grad=True)
    optimizer = torch.optim.AdamW([x])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(20):
            (x @ x).sum().backward()
    by_kind = time_by_kind(profile.events(), torch.device("cpu"))
    assert max(by_kind, key=lambda kind: by_kind[kind]) == "matrix products"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    by_kind = time_by_kind(profile.events(), torch.device("cpu"))
    assert set(by_kind) == {"optimizer"}


def test_a_run_too_short_says_so(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    run = train(make_config(max_iters=4, profile=True))
    assert any("no profile: it takes 6 steps" in line for line in said)
    assert not (run / "profile").exists()


def test_the_table_is_sorted_and_names_the_rest() -> None:
    lines = time_table({"a": 0.1, "b": 0.5}, wall=1.0, steps=2).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["b", "a", "between"]
    assert "50.0%" in lines[1]
    assert "250.00 ms" in lines[1]
    assert "40.0%" in lines[3]
