"""How fast this machine trains: a few steps are done and forgotten."""

from __future__ import annotations

import time

from mini_llm.train.config import TrainConfig
from mini_llm.train.step import Stepper


def seconds_per_step(config: TrainConfig, steps: int = 5) -> float:
    """Return how long a step of these settings takes on this machine: the median of `steps`, after one to warm up.

    Raises:
        UserError, UsageError: as `Stepper`.
    """
    stepper = Stepper(config.model_copy(update={"length_warmup": 0.0, "init": "normal"}))  # a step as most are
    stepper.compile()
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        stepper.step()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[steps // 2]
