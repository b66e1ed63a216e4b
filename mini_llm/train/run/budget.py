"""The budget: minutes become a number of steps, once, when the warm-up has shown how long a step takes.

With `fit_minutes` a run ends its schedule, learning rate and all, within `max_minutes`. Before the decision nothing
depends on `max_iters`, for the rate climbs by `warmup_iters` alone; after it everything does. The decision is written
to RUN/budget.json, and whoever goes on with the run keeps it: the clock is asked once, the rest is as exact as ever.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.files import write_text
from mini_llm.train.config import TrainConfig
from mini_llm.train.sample import write_sample

if TYPE_CHECKING:
    from mini_llm.train.train import Trainer

RECORD = "budget.json"
SPARE = 0.03  # of what is left: a machine is not equally fast in every minute
INTERVALS = ("eval_interval", "save_interval", "sample_interval")


def decided(config: TrainConfig) -> TrainConfig:
    """Return `config` with the number of steps that this run was given before, if it was.

    Raises:
        UserError: the record is damaged.
    """
    record = Path(config.out_dir) / RECORD
    if not (config.fit_minutes and config.resume and record.is_file()):
        return config
    try:
        steps = json.loads(record.read_text(encoding="utf-8"))["max_iters"]
        if not (isinstance(steps, int) and config.warmup_iters < steps):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{record}, the number of steps that fit into max_minutes, is damaged",
            "delete it: the run then counts them anew, and does not equal the unbroken one any more",
        ) from None
    return cut(config, steps)


def fit(trainer: Trainer) -> None:
    """After the warm-up, once: time a checkpoint, an evaluation and a sample, and cut the run to the steps that fit."""
    config, step, seconds = trainer.config, trainer.progress.step, trainer.clock.seconds_per_step
    is_due = config.fit_minutes and seconds > 0 and step >= config.warmup_iters
    if not is_due or (trainer.folder / RECORD).is_file():
        return
    start, stepper = time.monotonic(), trainer.stepper
    trainer.save()
    trainer.saver.wait()
    with stepper.average.in_place():
        trainer.evaluator.run(stepper.evaluation_loss_sum, stepper.device)
        if config.sample_interval is not None:
            write_sample(stepper.trainee.model, trainer.tokenizer, config.sample_prompt, seed=config.seed)
    now = time.monotonic()
    measured = {"seconds_left": trainer.ends_at - now, "seconds_per_step": seconds, "seconds_per_look": now - start}
    trainer.config = stepper.config = trainer.saver.config = decide(config, trainer.folder, step=step, **measured)
    trainer.clock.restart()


def decide(
    config: TrainConfig, run: Path, *, step: int, seconds_left: float, seconds_per_step: float, seconds_per_look: float
) -> TrainConfig:
    """Return `config` cut to the steps that fit, and record them.

    Args:
        config: its `max_iters` are the most that are wanted.
        run: the run folder.
        step: steps done; the warm-up is over.
        seconds_left: of the budget.
        seconds_per_step: of one step alone.
        seconds_per_look: of an evaluation with what comes with it: a checkpoint, a sample.
    """
    looks = math.ceil(config.max_iters / config.eval_interval)
    room = seconds_left * (1 - SPARE) - looks * seconds_per_look
    steps = min(config.max_iters, step + max(1, int(room / max(seconds_per_step, 1e-9))))
    values = {
        "max_iters": steps,
        "step": step,
        "seconds_left": round(seconds_left, 3),
        "seconds_per_step": round(seconds_per_step, 6),
        "seconds_per_look": round(seconds_per_look, 3),
    }
    write_text(run / RECORD, json.dumps(values) + "\n")
    log.info(f"{seconds_per_step:.3g} s a step: max_minutes={config.max_minutes:g} have room for {steps:,} steps")
    return cut(config, steps)


def cut(config: TrainConfig, steps: int) -> TrainConfig:
    """Return `config` with so many steps; the intervals keep their share of the whole."""
    update = {"max_iters": steps}
    for name in INTERVALS:
        if (interval := getattr(config, name)) is not None:
            update[name] = math.ceil(interval * steps / config.max_iters)
    return config.model_copy(update=update)
