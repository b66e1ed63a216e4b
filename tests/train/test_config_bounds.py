"""No number in a setting is so large or small that it ends in a hang or without memory: each has bounds."""

from typing import Any

import pytest

from mini_llm.config import load_config
from mini_llm.errors import UsageError
from mini_llm.model.config import ModelConfig
from mini_llm.train.config import TrainConfig


def numbers(cls: Any, prefix: str = "") -> list[str]:
    kinds = {name: str(field.annotation) for name, field in cls.model_fields.items()}
    return [f"{prefix}{name}" for name, kind in kinds.items() if "int" in kind or "float" in kind]


EVERY = [*numbers(TrainConfig), *numbers(ModelConfig, "model.")]


@pytest.mark.parametrize("key", EVERY)
@pytest.mark.parametrize("value", ["1e30", "-1e30", ".nan", "1e400", "9" * 25, "-1"])
def test_each_number_has_bounds(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"{key.rpartition('.')[2]}"):
        load_config(TrainConfig, None, [f"{key}={value}"])


def test_there_are_numbers_to_look_at() -> None:
    assert {"batch_size", "learning_rate", "eval_tasks_items", "model.n_layers"} <= set(EVERY)


@pytest.mark.parametrize("key", ["data_dir", "out_dir", "init_from", "eval_tasks_data"])
@pytest.mark.parametrize("value", ["$NOBODY_SET_THIS/x", '"a\\0b"', "a" * 300, "x/" * 3000, "~nobody-there/x"])
def test_each_path_is_one_that_can_be(key: str, value: str) -> None:
    with pytest.raises(UsageError):
        load_config(TrainConfig, None, [f"{key}={value}"])


def test_paths_know_home_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/tmp/somebody")
    monkeypatch.setenv("SETS", "/sets")
    config = load_config(TrainConfig, None, ["data_dir=~/tokens", "eval_tasks_data=~/a,piqa=$SETS/p.jsonl"])
    assert config.data_dir == "/tmp/somebody/tokens"
    assert config.eval_tasks_data == ["/tmp/somebody/a", "piqa=/sets/p.jsonl"]


@pytest.mark.parametrize("words", ["eval_tasks=" + ",".join("a" * 2000), "eval_tasks=" + "a" * 2000])
def test_lists_of_tasks_end(words: str) -> None:
    with pytest.raises(UsageError, match="eval_tasks"):
        load_config(TrainConfig, None, [words])
