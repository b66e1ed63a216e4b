"""A batch far outside the usual changes nothing, is recorded, and is skipped again when the run is repeated."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llm.errors import UserError
from mini_llm.train import step as step_module
from mini_llm.train.config import TrainConfig
from mini_llm.train.optim.spikes import IN_A_ROW, WARMUP, find_spike
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]


def usual(n: int, state: dict[str, float], level: float = 3.0) -> list[str | None]:
    dice = random.Random(n)
    return [find_spike(state, 6.0, dice.gauss(level, 0.1), dice.gauss(1.0, 0.05)) for _ in range(n)]


def test_noise_and_a_falling_loss_are_no_spikes() -> None:
    state: dict[str, float] = {}
    assert set(usual(2000, state)) == {None}
    assert state["loss mean"] == pytest.approx(3.0, abs=0.05)
    assert math.sqrt(state["loss variance"]) == pytest.approx(0.1, rel=0.3)
    falling: dict[str, float] = {}
    assert {find_spike(falling, 3.0, 10 / (1 + i / 50), 5 / (1 + i / 50)) for i in range(1000)} == {None}


def test_a_spike_of_loss_or_norm_is_found_and_moves_little() -> None:
    state: dict[str, float] = {}
    usual(500, state)
    assert "loss 9 is" in (find_spike(state, 6.0, 9.0, 1.0) or "")
    assert "gradient norm 80 is" in (find_spike(state, 6.0, 3.0, 80.0) or "")
    assert "loss 9 is" in (find_spike(state, 6.0, 9.0, 1.0) or "")
    assert state["loss mean"] < 3.1
    assert set(usual(100, state)) == {None}


def test_nothing_is_judged_before_there_is_a_usual() -> None:
    state: dict[str, float] = {}
    assert usual(WARMUP - 1, state) == [None] * (WARMUP - 1)
    assert find_spike(state, 6.0, 100.0, 1.0) is None


def test_a_level_that_stays_becomes_the_usual() -> None:
    state: dict[str, float] = {}
    usual(500, state)
    assert usual(60, state, level=8.0)[-30:] == [None] * 30


def test_not_finite_again_and_again_is_no_longer_the_batchs_fault() -> None:
    state: dict[str, float] = {}
    usual(100, state)
    answers = [find_spike(state, 6.0, math.nan, 1.0) for _ in range(IN_A_ROW)]
    assert all(answers[:-1])
    assert answers[-1] is None
    usual(1, state)
    assert find_spike(state, 6.0, 3.0, math.inf)


def spoil(steps: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply loss and gradient of these steps."""
    backward = step_module.Stepper._backward

    def spoiled(self: step_module.Stepper, step: int) -> float:
        loss = backward(self, step)
        for p in self.trainee.model.parameters():
            if p.grad is not None:
                p.grad *= steps.get(step, 1.0)
        return loss * steps.get(step, 1.0)

    monkeypatch.setattr(step_module.Stepper, "_backward", spoiled)


def test_a_skipped_batch_changes_no_weight_and_is_recorded(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil({60: 50.0, 70: math.nan}, monkeypatch)
    common = {"skip_spikes": 6.0, "save_interval": 1, "keep_last": 100, "log_interval": 7, "eval_interval": 100}
    run = train(make_config(max_iters=75, **common))
    assert [row["step"] for row in read_metrics(run) if row.get("skipped")] == [61, 71]
    before, at, after = (run / f"checkpoints/step-{step:08d}/model.safetensors" for step in (60, 61, 62))
    assert before.read_bytes() == at.read_bytes() != after.read_bytes()
    optimizer = "training_state/optimizer.safetensors"
    assert (before.parent / optimizer).read_bytes() == (at.parent / optimizer).read_bytes()


def test_a_resumed_run_skips_the_same_batches(make_config: MakeConfig, tmp_path: Path) -> None:
    """With a twentieth of a standard deviation many a real batch is a spike."""
    changes = {"skip_spikes": 0.05, "max_iters": 90, "eval_interval": 15, "save_interval": 15, "eval_iters": 1}
    unbroken = train(make_config(tmp_path / "unbroken", **changes))
    skipped = [row["step"] for row in read_metrics(unbroken) if row.get("skipped")]
    assert any(step > 75 for step in skipped)

    def power_cut(step: int, _: object) -> None:
        if step == 75:
            raise KeyboardInterrupt

    config = make_config(tmp_path / "run", **changes)
    with pytest.raises(KeyboardInterrupt):
        train(config, after_evaluation=power_cut)
    run = train(config)
    assert (run / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    for name in ("model.safetensors", "training_state/state.json"):
        assert (run / "latest" / name).read_bytes() == (unbroken / "latest" / name).read_bytes()


def test_weights_that_are_bad_still_end_the_run(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(dict.fromkeys(range(3, 100), math.nan), monkeypatch)
    with pytest.raises(UserError, match=f"nan at step {3 + IN_A_ROW}"):
        train(make_config(max_iters=50, skip_spikes=6.0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_works_in_every_precision(dtype: str, make_config: MakeConfig) -> None:
    run = train(make_config(max_iters=80, skip_spikes=0.05, dtype=dtype, eval_interval=80, optimizer="muon"))
    assert any(row.get("skipped") for row in read_metrics(run))
    assert read_metrics(run)[-1]["step"] == 80
