"""The learning rate against its formulas, by hand."""

import math
from typing import Any

import pytest

from mini_llm.train.config import TrainConfig
from mini_llm.train.optim.lr_scheduler import learning_rate, row_parts


def config(**changes: Any) -> TrainConfig:
    values = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_iters": 9, "max_iters": 109, **changes}
    return TrainConfig.model_validate(values)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_it_climbs_in_equal_steps_and_never_is_zero(schedule: str) -> None:
    rates = [learning_rate(step, config(lr_schedule=schedule)) for step in range(10)]
    assert rates == pytest.approx([(i + 1) / 10 for i in range(10)])


def test_cosine_by_hand() -> None:
    c = config()
    assert learning_rate(9, c) == 1.0
    assert learning_rate(34, c) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)  # a quarter down
    assert learning_rate(59, c) == pytest.approx(0.55)  # half-way
    assert learning_rate(108, c) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.99)) / 2)
    assert learning_rate(109, c) == learning_rate(10_000, c) == 0.1


def test_wsd_by_hand() -> None:
    c = config(lr_schedule="wsd", max_iters=100, cooldown_fraction=0.4)
    assert [learning_rate(step, c) for step in (9, 30, 60)] == [1.0, 1.0, 1.0]
    assert learning_rate(80, c) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(99, c) == pytest.approx(0.1 + 0.9 * 1 / 40)
    assert learning_rate(100, c) == 0.1


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_lr_decay_iters_ends_the_fall_before_the_run_ends(schedule: str) -> None:
    c = config(lr_schedule=schedule, lr_decay_iters=50)
    assert learning_rate(49, c) > 0.1
    assert [learning_rate(step, c) for step in (50, 51, 108)] == [0.1] * 3


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_without_warm_up_it_begins_at_the_peak(schedule: str) -> None:
    assert learning_rate(0, config(lr_schedule=schedule, warmup_iters=0)) == 1.0


def test_a_warm_up_longer_than_the_run_just_climbs() -> None:
    c = config(warmup_iters=200)
    rates = [learning_rate(step, c) for step in range(109)]
    assert rates == sorted(rates)
    assert rates[-1] < 1


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_it_never_rises_after_warm_up_nor_leaves_its_bounds(schedule: str) -> None:
    rates = [learning_rate(step, config(lr_schedule=schedule)) for step in range(9, 130)]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) == 0.1
    assert max(rates) == 1.0


def test_rows_grow_from_a_quarter_over_a_half_to_the_whole() -> None:
    parts = [row_parts(step, config(max_iters=100, length_warmup=0.4)) for step in range(100)]
    assert parts == [4] * 20 + [2] * 20 + [1] * 60
    assert {row_parts(step, config()) for step in range(109)} == {1}
