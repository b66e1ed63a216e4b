"""The budget: minutes become a number of steps once the warm-up has shown how long a step takes, and later fewer.

With `fit_minutes` a run ends its schedule, learning rate and all, within `max_minutes`. Before the first plan nothing
depends on `max_iters`, for the rate climbs by `warmup_iters` alone; after it everything does. A machine does not keep
the pace of its first steps, so the clock is asked again each time a quarter of what was left is done, and a run that
would end late is cut: its rate then falls a little sooner. Every plan is written to RUN/budget.json with its step, and
whoever goes on with the run keeps to them: the rest is as exact as ever.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.files import write_text
from mini_llm.train.config import TrainConfig
from mini_llm.train.sample import write_sample

if TYPE_CHECKING:
    from mini_llm.train.train import Trainer

Plan = dict[str, Any]
RECORD = "budget.json"
SPARE = 0.01  # of what is left: a machine is not equally fast in every minute
PARTS = 4  # of what is left; after each the clock is asked again, as long as one is LEAST steps
LEAST = 5
INTERVALS = ("eval_interval", "save_interval", "sample_interval")


def decided(config: TrainConfig) -> TrainConfig:
    """Return `config` with the number of steps that this run was given at first, if it was; `Budget` knows later ones.

    Raises:
        UserError: the record is damaged.
    """
    plans = read_plans(config)
    return cut(config, plans[0]["max_iters"]) if plans else config


def read_plans(config: TrainConfig) -> list[Plan]:
    """Return what this run has planned so far.

    Raises:
        UserError: the record is damaged.
    """
    record = Path(config.out_dir) / RECORD
    if not (config.fit_minutes and config.resume and record.is_file()):
        return []
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        plans: list[Plan] = values.get("plans", [values])  # a record without them is one, of an older version
        numbers = [plan[key] for plan in plans for key in ("step", "max_iters")]
        if not numbers or not all(isinstance(n, int) and n >= config.warmup_iters for n in numbers):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{record}, the number of steps that fit into max_minutes, is damaged",
            "delete it: the run then counts them anew, and does not equal the unbroken one any more",
        ) from None
    return plans


class Budget:
    """The plans of one run: those that an earlier process has made, and those of this one."""

    def __init__(self, config: TrainConfig, run: Path) -> None:
        """Read them; raises as `read_plans`."""
        self.run, self.plans = run, read_plans(config)

    def fit(self, trainer: Trainer) -> None:
        """Before a step: keep to the plan that holds from here on, or make it, where one is due."""
        config, step = trainer.config, trainer.progress.step
        if not config.fit_minutes or step < config.warmup_iters:
            return
        made = [plan for plan in self.plans if plan["step"] <= step]
        if not made and trainer.clock.seconds_per_step > 0:
            self._begin(trainer)
        if not made:
            return
        if made[-1]["max_iters"] != config.max_iters:
            self._keep(trainer, config.model_copy(update={"max_iters": made[-1]["max_iters"]}))
        part = (made[-1]["max_iters"] - made[-1]["step"]) // PARTS
        if made == self.plans and part >= LEAST and step == made[-1]["step"] + part:
            self._plan(trainer, trainer.clock.lap(), made[0].get("seconds_per_look", 0.0))

    def _begin(self, trainer: Trainer) -> None:
        """After the warm-up: time a checkpoint, an evaluation and a sample too; the run becomes the steps that fit."""
        config, stepper, clock, start = trainer.config, trainer.stepper, trainer.clock, time.monotonic()
        seconds_per_step = clock.seconds_per_step
        trainer.save()
        trainer.saver.wait()
        with stepper.average.in_place():
            trainer.evaluator.run(stepper.evaluation_loss_sum, stepper.device)
            if config.sample_interval is not None:
                write_sample(stepper.trainee.model, trainer.tokenizer, config.sample_prompt, seed=config.seed)
        clock.lap()
        self._plan(trainer, seconds_per_step, time.monotonic() - start)

    def _plan(self, trainer: Trainer, seconds_per_step: float, seconds_per_look: float) -> None:
        """Ask the clock, write the plan down, and keep to it."""
        config, step = trainer.config, trainer.progress.step
        measured = {
            "seconds_left": trainer.ends_at - time.monotonic(),
            "seconds_per_step": seconds_per_step,
            "seconds_per_look": seconds_per_look,
        }
        steps = decide(config, step=step, **measured)
        self.plans.append({"step": step, "max_iters": steps, **{key: round(x, 6) for key, x in measured.items()}})
        write_text(self.run / RECORD, json.dumps({"max_iters": steps, "plans": self.plans}) + "\n")
        if len(self.plans) == 1:
            room = f"max_minutes={config.max_minutes:g} have room for {steps:,} steps"
            log.info(f"{seconds_per_step:.3g} s a step: {room}")
            self._keep(trainer, cut(config, steps))
        elif steps < config.max_iters:
            self._keep(trainer, config.model_copy(update={"max_iters": steps}))
        trainer.clock.restart()

    def _keep(self, trainer: Trainer, config: TrainConfig) -> None:
        trainer.config = trainer.stepper.config = trainer.saver.config = config


def decide(
    config: TrainConfig, *, step: int, seconds_left: float, seconds_per_step: float, seconds_per_look: float
) -> int:
    """Return how many steps fit, at most `config.max_iters`.

    Args:
        config: the settings, or the last plan's.
        step: steps done; the warm-up is over.
        seconds_left: of the budget.
        seconds_per_step: of one step alone.
        seconds_per_look: of an evaluation with what comes with it: a checkpoint, a sample.
    """
    looks = math.ceil(config.max_iters / config.eval_interval) - step // config.eval_interval
    room = seconds_left * (1 - SPARE) - looks * seconds_per_look
    return min(config.max_iters, step + max(1, int(room / max(seconds_per_step, 1e-9))))


def cut(config: TrainConfig, steps: int) -> TrainConfig:
    """Return `config` with so many steps; the intervals keep their share of the whole."""
    update = {"max_iters": steps}
    for name in INTERVALS:
        if (interval := getattr(config, name)) is not None:
            update[name] = math.ceil(interval * steps / config.max_iters)
    return config.model_copy(update=update)
