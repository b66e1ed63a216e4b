"""The ladder of configs, and the numbers of a plan."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from mini_llm.config import load_config, shipped_config
from mini_llm.errors import UsageError
from mini_llm.model.config import ModelConfig
from mini_llm.plan.report import check_parameters, fits, make_plan
from mini_llm.train.config import TrainConfig

PARAMETERS = {  # those of Llama are the published ones
    "demo": 5_506_752,
    "mini-50m": 50_049_408,
    "mini-80m": 79_319_552,
    "125m": 124_635_456,
    "350m": 345_355_200,
    "llama-1b": 1_235_814_400,
    "3b": 3_212_749_824,
    "8b": 8_030_261_248,
    "70b": 70_553_706_496,
    "80b": 79_965_904_896,
}
COMPUTED = [name for name in PARAMETERS if name not in ("demo", "mini-50m")]


def config(name: str, *words: str) -> TrainConfig:
    return load_config(TrainConfig, shipped_config(f"{name}.yaml"), words)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_has_the_parameters_that_it_states(name: str) -> None:
    assert check_parameters(config(name).model) == PARAMETERS[name]
    if name != "demo":
        assert f"{PARAMETERS[name]:,} parameters" in shipped_config(f"{name}.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize("name", COMPUTED)
def test_a_header_says_what_the_plan_says(name: str) -> None:
    header = shipped_config(f"{name}.yaml").read_text().partition("# Files")[0]
    gpus, gpu = re.search(r"--gpus (\d+) --gpu (\w+)", header).groups()
    plan = make_plan(config(name), gpu=gpu, gpus=int(gpus), mfu=0.4)
    amount, unit = re.search(r"# time +(\d+) (hours|days) at 40 % MFU", header).groups()
    # The config's own steps are a round number near the compute-optimal tokens.
    assert plan.own_tokens == pytest.approx(plan.optimal_tokens, rel=0.02)
    assert plan.schedule.hours / (24 if unit == "days" else 1) == pytest.approx(int(amount), rel=0.02, abs=0.5)
    assert fits(list(plan.memory.values())[-1], plan.machine) is True
    first, last = map(float, re.search(r"about ([\d.]+) at first.*; about ([\d.]+) at the end", header).groups())
    assert first == pytest.approx(math.log(plan.config.model.vocab_size), abs=0.005)
    assert last == pytest.approx(plan.schedule.loss, abs=0.01)


def test_all_configs_have_the_same_keys() -> None:
    def keys(name: str) -> list[str]:
        return list(yaml.safe_load(shipped_config(f"{name}.yaml").read_text()))

    assert {name: keys(name) for name in COMPUTED} == {name: keys("mini-50m") for name in COMPUTED}


def test_the_config_to_read_shows_every_key() -> None:
    shown = yaml.safe_load(shipped_config("mini-50m.yaml").read_text())
    assert shown.keys() == TrainConfig.model_fields.keys()


@pytest.mark.parametrize("name", [*PARAMETERS, "demo-gpu"])
def test_a_header_says_for_which_machine_how_long_and_which_loss(name: str) -> None:
    header = re.match(r"(#.*\n)+", shipped_config(f"{name}.yaml").read_text())[0]
    for promise in (r"\bGPUs?\b|\bcores\b", r"^# time +\S", r"^# loss +\S"):
        assert re.search(promise, header, re.MULTILINE), promise


def test_small_models_take_the_recipe_that_won_the_trials_and_large_ones_the_published_one() -> None:
    recipe = {name: (config(name).optimizer, config(name).lr_schedule) for name in PARAMETERS}
    large = {"3b", "8b", "70b", "80b"}
    assert recipe == {name: ("adamw", "cosine") if name in large else ("muon", "wsd") for name in PARAMETERS}


def test_the_demo_on_a_small_gpu_halves_its_batch() -> None:
    assert config("demo-gpu").auto_batch


@pytest.mark.parametrize(
    ("name", "factor", "tied"), [("llama-1b", 32, True), ("3b", 32, True), ("8b", 8, False), ("70b", 8, False)]
)
def test_llamas_are_llamas(name: str, factor: float, tied: bool) -> None:
    model = config(name).model
    assert (model.vocab_size, model.rope_theta, model.norm_eps, model.n_kv_heads) == (128256, 500000.0, 1e-5, 8)
    assert (model.rope_scaling.factor, model.tie_embeddings, model.max_seq_len) == (factor, tied, 131072)


def test_the_command_prints_one_object(run_cli) -> None:
    words = ("--config", "configs/8b.yaml", "--gpus", "16", "--gpu", "h100", "--price", "2.5", "--json")
    result = run_cli("plan", *words, "learning_rate=1e-4", fresh=True)
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert plan["parameters"] == PARAMETERS["8b"]
    assert plan["kv_cache_bytes"]["per_token"] == 2 * 32 * 8 * 128 * 2  # 128 KiB, as published for Llama 3 8B
    assert plan["cost"] == pytest.approx(plan["hours"] * 16 * 2.5)
    assert plan["tokens"]["compute_optimal"] == 20 * PARAMETERS["8b"]
    assert plan["hours"] * 3600 * 16 * 989e12 * 0.4 == pytest.approx(plan["flops"])
    assert plan["fits"] == {
        "as configured": False,
        "+ checkpointing": False,
        "+ sharding over 16": True,
        "+ both": True,
    }


def test_twice_the_devices_take_half_the_time() -> None:
    one, two = (make_plan(config("mini-80m"), gpu="a100", gpus=n).schedule.hours for n in (1, 2))
    assert one == pytest.approx(2 * two)
    assert make_plan(config("mini-80m"), gpu="a100", mfu=0.25).schedule.hours == pytest.approx(2 * one)  # 0.5 is usual


def test_float32_on_a_gpu_has_no_known_speed() -> None:
    schedule = make_plan(config("mini-80m", "dtype=float32"), gpu="a100", price=1.0).schedule
    assert (schedule.hours, schedule.cost) == (None, None)


def test_a_run_that_is_too_big_is_told_what_to_change_and_then_fits() -> None:
    plan = make_plan(config("350m", "batch_size=256"), gpu="4090")
    assert fits(plan.memory["as configured"], plan.machine) is False
    settings = re.findall(r"\w+=\d+", plan.advice[-1])
    changed = config("350m", *settings)
    assert changed.rows_per_step == 256 * config("350m").gradient_accumulation_steps
    assert fits(make_plan(changed, gpu="4090").memory["as configured"], plan.machine) is True
    assert make_plan(changed, gpu="4090").advice == []


@pytest.mark.parametrize("name", ["mini-50m", "flagship", "demo-gpu"])
def test_a_50m_config_runs_as_it_is_on_the_cards_that_its_header_names(name: str) -> None:
    header = re.match(r"(#.*\n)+", shipped_config(f"{name}.yaml").read_text())[0]
    assert all(word in header for word in ("24 GB", "4090", "8 GB", "3070"))
    large, small = (make_plan(config(name), gpu=gpu) for gpu in ("4090", "3070"))
    assert fits(large.memory["as configured"], large.machine) is True
    assert large.advice == []
    assert fits(small.memory["as configured"], small.machine) is False
    assert fits(small.memory["with auto_batch"], small.machine) is True
    assert "auto_batch does so by itself" in small.advice[0]
    changed = config(name, *re.findall(r"\w+=\d+", small.advice[0]))
    assert changed.rows_per_step == config(name).rows_per_step
    assert make_plan(changed, gpu="3070").memory["as configured"] == small.memory["with auto_batch"]


def test_a_batch_that_auto_batch_mends_is_no_failure(run_cli) -> None:
    said = run_cli("plan", "--config", "configs/mini-50m.yaml", "--gpu", "3070").stdout
    assert "It does not fit as configured, but with\n  batch_size=16 gradient_accumulation_steps=16" in said
    without = run_cli("plan", "--config", "configs/mini-50m.yaml", "--gpu", "3070", "auto_batch=false").stdout
    assert "It does not fit. Change:" in without


def test_what_no_setting_makes_fit_is_told_how_many_devices() -> None:
    advice = make_plan(config("70b"), gpu="h100").advice
    assert re.search(r"--gpus \d+ ", advice[-1])
    assert "parallel.shard=full" in advice[-1]


def test_several_cpus_are_refused() -> None:
    with pytest.raises(UsageError, match="needs a GPU"):
        make_plan(config("demo"), gpu="cpu", gpus=2)


def test_a_wrong_setting_is_named(run_cli, tmp_path: Path) -> None:
    result = run_cli("plan", "--config", "configs/8b.yaml", "n_layers=4")
    assert (result.returncode, result.stdout) == (2, "")
    assert "did you mean 'model.n_layers'?" in result.stderr
    result = run_cli("plan", "--config", tmp_path / "none.yaml")
    assert result.returncode == 1
    assert "no config file at" in result.stderr


def test_a_formula_that_forgets_something_is_found(monkeypatch) -> None:
    monkeypatch.setattr("mini_llm.plan.report.count_parameters", lambda model: 1)
    with pytest.raises(AssertionError, match="formula 1, model"):
        check_parameters(ModelConfig(dim=64, n_layers=1, n_heads=4))


def test_what_the_config_itself_shares_needs_no_advice() -> None:
    assert make_plan(config("80b"), gpu="h100", gpus=1024).advice == []
    assert make_plan(config("80b", "parallel.shard=ddp", "parallel.tensor=1"), gpu="h100", gpus=1024).advice
