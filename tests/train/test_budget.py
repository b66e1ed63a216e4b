"""A budget of minutes: the schedule ends within it, and a run that goes on keeps what was decided."""

import json

import pytest

from mini_llm.errors import UserError
from mini_llm.train.run import budget
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.train import train

FIT = {"max_minutes": 0.2, "fit_minutes": True, "max_iters": 100_000, "eval_interval": 25_000, "save_interval": 12_500}


def test_the_schedule_ends_within_the_minutes_and_a_resumed_run_keeps_it(make_config, tmp_path, monkeypatch) -> None:
    config = make_config(tmp_path / "a", **FIT, sample_interval=25_000, log_interval=5)
    real = budget.decide

    def slow(config, run, **measured):  # a machine on which 40 steps fit
        return real(config, run, **{**measured, "seconds_left": 4.0, "seconds_per_step": 0.1, "seconds_per_look": 0.0})

    monkeypatch.setattr(budget, "decide", slow)
    train(config)
    record = json.loads((tmp_path / "a" / budget.RECORD).read_text())
    steps = record["max_iters"]
    assert (record["step"], steps) == (2, 2 + 38)
    rows = read_metrics(tmp_path / "a")
    assert rows[-2]["step"] == steps
    assert rows[-2]["lr"] == pytest.approx(config.min_lr, rel=0.1)
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 10, 20, 30, 40]
    assert [row["step"] for row in read_metrics(tmp_path / "a", "samples")] == [10, 20, 30, 40]

    # The same run, stopped in the middle and gone on with on a machine that would decide otherwise.
    other = make_config(tmp_path / "b", **FIT, sample_interval=25_000, log_interval=5)
    stop = RuntimeError("stop")

    def at_twenty(step, model) -> None:
        if step == 20:
            raise stop

    with pytest.raises(RuntimeError, match="stop"):
        train(other, after_evaluation=at_twenty)
    monkeypatch.setattr(budget, "decide", lambda *args, **kwargs: pytest.fail("decided twice"))
    train(other)
    for name in ("metrics", "samples"):
        assert read_metrics(tmp_path / "a", name) == read_metrics(tmp_path / "b", name)
    weights = [(tmp_path / r / "latest" / "model.safetensors").read_bytes() for r in "ab"]
    assert weights[0] == weights[1]


def test_few_steps_that_are_wanted_are_not_made_more(make_config, tmp_path) -> None:
    config = make_config(tmp_path, max_minutes=60, fit_minutes=True, max_iters=12)
    measured = {"step": 2, "seconds_left": 3000.0, "seconds_per_step": 0.01, "seconds_per_look": 0.1}
    assert budget.decide(config, tmp_path, **measured) == config
    looks = {**measured, "seconds_left": 10.0, "seconds_per_step": 1.0, "seconds_per_look": 2.0}
    assert budget.decide(config, tmp_path, **looks).max_iters == 2 + int(10 * (1 - budget.SPARE) - 4)


@pytest.mark.parametrize("damage", ["", "{}", '{"max_iters": "7"}', '{"max_iters": 1}', "[]"])
def test_a_damaged_record_is_told(damage: str, make_config, tmp_path) -> None:
    config = make_config(tmp_path / "run", max_minutes=1, fit_minutes=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / budget.RECORD).write_text(damage)
    with pytest.raises(UserError, match=r"budget\.json"):
        train(config)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"max_minutes": 1, "lr_decay_iters": 5},
        {"max_minutes": 1, "warmup_iters": 1},
        {"max_minutes": 1, "length_warmup": 0.5},
    ],
)
def test_what_a_budget_cannot_do_is_refused(wrong, make_config) -> None:
    with pytest.raises(UserError, match="fit_minutes"):
        make_config(fit_minutes=True, **wrong)
