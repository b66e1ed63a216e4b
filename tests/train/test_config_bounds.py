"""No number in a setting is so large or small that it ends in a hang or without memory: each has bounds."""

from typing import Any

import pytest

from mini_llm.config import load_config
from mini_llm.errors import UsageError
from mini_llm.model.config import ModelConfig
from mini_llm.train.config import TrainConfig
from mini_llm.tune.config import LoraConfig, SftConfig
from mini_llm.tune.dpo_config import DpoConfig


def numbers(cls: Any, prefix: str = "") -> list[str]:
    kinds = {name: str(field.annotation) for name, field in cls.model_fields.items()}
    return [f"{prefix}{name}" for name, kind in kinds.items() if "int" in kind or "float" in kind]


EVERY = [(TrainConfig, key) for key in (*numbers(TrainConfig), *numbers(ModelConfig, "model."))]
EVERY += [(cls, key) for cls in (SftConfig, DpoConfig) for key in (*numbers(cls), *numbers(LoraConfig, "lora."))]


@pytest.mark.parametrize(("cls", "key"), EVERY)
def test_each_number_has_bounds(cls: type[TrainConfig], key: str) -> None:
    for value in ("1e30", "-1e30", ".nan", "1e400", "9" * 25, "-1"):
        with pytest.raises(UsageError, match=rf"{key.rpartition('.')[2]}"):
            load_config(cls, None, [f"{key}={value}"])


def test_there_are_numbers_to_look_at() -> None:
    assert {"batch_size", "learning_rate", "eval_tasks_items", "model.n_layers"} <= {key for _, key in EVERY}


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


def test_paths_of_tuning_know_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/tmp/somebody")
    config = load_config(SftConfig, None, ["out_dir=~/tuned", "base=~/run", 'data=["~/a.jsonl"]'])
    assert (config.out_dir, config.base) == ("/tmp/somebody/tuned", "/tmp/somebody/run")
    assert config.data == ("/tmp/somebody/a.jsonl",)
    with pytest.raises(UsageError, match="lr_schedule"):
        load_config(SftConfig, None, ["lr_schedule=steps"])


@pytest.mark.parametrize("words", ["eval_tasks=" + ",".join("a" * 2000), "eval_tasks=" + "a" * 2000])
def test_lists_of_tasks_end(words: str) -> None:
    with pytest.raises(UsageError, match="eval_tasks"):
        load_config(TrainConfig, None, [words])
