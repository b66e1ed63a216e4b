"""The learning rate of each step: rise, then fall. And the length of its rows: short ones first.

Cosine: arXiv 1608.03983. Warm-up, stable, decay (wsd): arXiv 2404.06395; linear cool-down: arXiv 2405.18392.
Short rows first: arXiv 2108.06084.
"""

import math

from mini_llm.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of step 0, 1, ...: it climbs to `learning_rate`, ends at `min_lr`, and stays there."""
    end = config.lr_decay_iters or config.max_iters
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step >= end:
        return config.min_lr
    if config.lr_schedule == "cosine":
        progress = (step - config.warmup_iters) / max(1, end - config.warmup_iters)
        height = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        height = min(1.0, (end - step) / (config.cooldown_fraction * end))
    return config.min_lr + height * (config.learning_rate - config.min_lr)


def row_parts(step: int, config: TrainConfig) -> int:
    """Return into how many rows each row of step 0, 1, ... is cut: 4, then 2, each for half of the warm-up, then 1."""
    warmup = config.length_warmup * config.max_iters
    if step < warmup / 2:
        return 4
    return 2 if step < warmup else 1
