"""Probes: questions put to the model while it learns. Whatever goes wrong with them, training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from mini_llm import log
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig


class Probe(Protocol):
    """What the model is asked. It must leave weights and random state as they are."""

    before_batch: Callable[[], None]  # called before each batch; may raise, to stop in the middle

    def run(self, model: Transformer) -> dict[str, float]:
        """Return what metrics.jsonl gets; the keys begin with "tasks/"."""

    def describe(self, found: dict[str, float]) -> str:
        """Return it for a person."""


MakeProbe = Callable[[TrainConfig, Tokenizer], Probe | None]


class SignalCame(BaseException):
    """A step or an evaluation was given up between two batches, so that a signal need not wait for all of it.

    Like KeyboardInterrupt it is no `Exception`: whoever puts up with failures must not put up with this.
    """


def ask_safely(
    probe: Probe | None, step: int, model: Transformer, before_batch: Callable[[], None]
) -> dict[str, float] | None:
    """Return what the probe finds, or after a warning None: no failure of it, memory included, may end a run.

    Raises:
        SignalCame: the user wants to stop.
    """
    if probe is None:
        return None
    probe.before_batch = before_batch
    try:
        return probe.run(model)
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        log.warn(f"step {step}: the tasks could not be evaluated ({reason}); training goes on")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what a failed batch held
        return None
