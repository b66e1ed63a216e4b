"""Training runs of a second: a model of 47,000 parameters on ten addresses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_process import CliProcess
from processes import on_ranks, start_ranks  # noqa: F401 (fixtures)

from mini_llm.config import load_config
from mini_llm.train.config import TrainConfig

Settings = Callable[..., list[str]]
MakeConfig = Callable[..., TrainConfig]
Start = Callable[..., CliProcess]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one core: for models this small a second one costs more than it brings."""
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def settings(tiny_store: Path, tmp_path: Path) -> Settings:
    """Return `settings(out_dir, key=value, model={...})`: the words for `mini-llm train`."""

    def words(out_dir: Path | None = None, model: dict[str, object] | None = None, **changes: object) -> list[str]:
        values: dict[str, object] = {
            "data_dir": tiny_store,
            "out_dir": out_dir or tmp_path / "run",
            "batch_size": 4,
            "block_size": 32,
            "max_iters": 10,
            "learning_rate": 1e-2,
            "min_lr": 1e-3,
            "warmup_iters": 2,
            "eval_interval": 10,
            "eval_iters": 2,
            "save_interval": 10,
            "log_interval": 1,
            "device": "cpu",
            "dtype": "float32",
            "compile": "false",
            **{key: str(value).lower() if isinstance(value, bool) else value for key, value in changes.items()},
        }
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "max_seq_len": 64}
        shape |= model or {}
        return [f"{k}={v}" for k, v in values.items()] + [f"model.{k}={v}" for k, v in shape.items()]

    return words


@pytest.fixture
def make_config(settings: Settings) -> MakeConfig:
    """Return `make_config(out_dir, key=value, model={...})`: the same as a `TrainConfig`."""
    return lambda *args, **changes: load_config(TrainConfig, None, settings(*args, **changes))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return `start("train", *words, before="Python")`: it starts a process of the command line."""
    started: list[CliProcess] = []

    def begin(*arguments: object, before: str = "") -> CliProcess:
        started.append(CliProcess(*arguments, stderr=tmp_path / f"stderr-{len(started)}.txt", before=before))
        return started[-1]

    yield begin
    for process in started:
        if process.process.is_alive():
            process.kill()
            process.process.join()
