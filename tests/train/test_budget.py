"""A budget of minutes: the schedule ends within it, and a run that goes on keeps what was decided."""

import json
from itertools import pairwise

import pytest

from mini_llm.errors import UserError
from mini_llm.train.run import budget
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.train import train

FIT = {"max_minutes": 10, "fit_minutes": True, "max_iters": 100_000, "eval_interval": 25_000, "save_interval": 12_500}


def test_the_schedule_ends_within_the_minutes_and_a_resumed_run_keeps_it(make_config, tmp_path, monkeypatch) -> None:
    config = make_config(tmp_path / "a", **FIT, sample_interval=25_000, log_interval=5)
    real = budget.decide

    def slow(config, **measured):  # a machine on which 40 steps fit
        return real(config, **{**measured, "seconds_left": 3.9, "seconds_per_step": 0.1, "seconds_per_look": 0.0})

    monkeypatch.setattr(budget, "decide", slow)
    train(config)
    record = json.loads((tmp_path / "a" / budget.RECORD).read_text())
    steps = record["max_iters"]
    assert (record["plans"][0]["step"], steps) == (2, 2 + 38)
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

    def faster(config, *, step, **measured):
        assert step > 20, "planned what is planned"
        return config.max_iters

    monkeypatch.setattr(budget, "decide", faster)
    train(other)
    for name in ("metrics", "samples"):
        assert read_metrics(tmp_path / "a", name) == read_metrics(tmp_path / "b", name)
    weights = [(tmp_path / r / "latest" / "model.safetensors").read_bytes() for r in "ab"]
    assert weights[0] == weights[1]


def test_few_steps_that_are_wanted_are_not_made_more(make_config, tmp_path) -> None:
    config = make_config(tmp_path, max_minutes=60, fit_minutes=True, max_iters=12)
    measured = {"step": 2, "seconds_left": 3000.0, "seconds_per_step": 0.01, "seconds_per_look": 0.1}
    assert budget.decide(config, **measured) == 12
    looks = {**measured, "seconds_left": 10.0, "seconds_per_step": 1.0, "seconds_per_look": 2.0}
    assert budget.decide(config, **looks) == 2 + int(10 * (1 - budget.SPARE) - 4)


def test_a_machine_that_becomes_slower_still_ends_its_schedule(make_config, tmp_path, monkeypatch) -> None:
    """Cut on the way, rate and all; killed twice, it ends with the same bits, however fast it goes on."""
    real, asked = budget.decide, []

    def slower(config, *, step, **measured):  # 0.1 s a step in the warm-up, 0.2 s from then on, 10 s in all
        asked.append(step)
        pace, left = (0.1, 10.0) if step == 2 else (0.2, 10.0 - 0.2 * step)
        times = {"seconds_left": left, "seconds_per_step": pace, "seconds_per_look": 0.0}
        return real(config, step=step, **{**measured, **times})

    monkeypatch.setattr(budget, "decide", slower)
    settings = {**FIT, "save_interval": 5_000, "log_interval": 1, "lr_schedule": "wsd", "cooldown_fraction": 0.7}
    train(config := make_config(tmp_path / "a", **settings, min_lr=0.0))
    record = json.loads((tmp_path / "a" / budget.RECORD).read_text())
    found = [(plan["step"], plan["max_iters"]) for plan in record["plans"]]
    assert found[0] == (2, 101)
    assert all(later <= before for (_, before), (_, later) in pairwise(found))
    steps = found[-1][1]
    assert 45 <= steps <= 50
    rates = [row["lr"] for row in read_metrics(tmp_path / "a") if "lr" in row]
    assert len(rates) == steps == record["max_iters"]
    assert found[1][0] == 26
    assert rates[2:26] == 24 * [config.learning_rate]
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] <= config.learning_rate / (0.6 * steps)

    stop, last = RuntimeError("stop"), asked[-1]

    def at_most(most):
        def stops(config, *, step, **measured):
            if step >= most:
                raise stop
            return slower(config, step=step, **measured)

        return stops

    other = make_config(tmp_path / "b", **settings, min_lr=0.0)
    for most in (asked[2], last):  # each time on from a checkpoint that is older than the last plan
        monkeypatch.setattr(budget, "decide", at_most(most))
        with pytest.raises(RuntimeError, match="stop"):
            train(other)
    monkeypatch.setattr(budget, "decide", slower)
    train(other)
    plans = [json.loads((tmp_path / run / budget.RECORD).read_text())["plans"] for run in "ab"]
    assert [[(p["step"], p["max_iters"]) for p in made] for made in plans] == [found, found]
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")
    weights = [(tmp_path / r / "latest" / "model.safetensors").read_bytes() for r in "ab"]
    assert weights[0] == weights[1]


def test_a_record_of_one_plan_is_kept(make_config, tmp_path) -> None:
    """As versions before this one wrote it."""
    config = make_config(tmp_path, max_minutes=60, fit_minutes=True, max_iters=120, eval_interval=60)
    (tmp_path / budget.RECORD).write_text('{"max_iters": 12, "step": 2, "seconds_per_look": 0.1}')
    train(config)
    assert read_metrics(tmp_path)[-1]["step"] == 12


@pytest.mark.parametrize(
    "damage", ["", "{}", '{"max_iters": "7"}', '{"max_iters": 1, "step": 2}', "[]", '{"plans": []}', '{"plans": [3]}']
)
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
