"""A run whose loss or gradient is no number any more: which checkpoint is good, and what to change."""

from __future__ import annotations

from pathlib import Path

from mini_llm.errors import UserError
from mini_llm.pointers import list_checkpoints
from mini_llm.train.config import TrainConfig


def diverged(problem: Exception, config: TrainConfig, run: Path, step: int) -> UserError:
    """Return what to tell the user after step `step`, the last good one."""
    checkpoints = list_checkpoints(run)
    good = [folder for saved, folder in checkpoints if saved < step]  # the one of `step` itself led here
    bad = [folder for saved, folder in checkpoints if saved >= step]
    halved = {"learning_rate": config.learning_rate / 2}
    if config.min_lr > halved["learning_rate"]:
        halved["min_lr"] = config.min_lr / 2
    if config.optimizer == "muon":
        halved["muon_learning_rate"] = config.muon_learning_rate / 2
    settings = " ".join(f"{key}={value:g}" for key, value in halved.items())
    return UserError(
        f"{problem} at step {step + 1}; "
        + (f"the last good checkpoint is {good[-1]}" if good else "there is no good checkpoint yet"),
        (f"delete {bad[-1]}, then " if bad else "")
        + f"run again {'from there ' if good else ''}with {settings} or more warmup_iters; "
        "dtype=float32 tells whether precision is the cause",
    )
