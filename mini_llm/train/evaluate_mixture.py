"""Held-out loss of a mixture: of each store by its name, and of all by the weights they are trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.data.mixture import Mixture
from mini_llm.data.store_shares import share_out
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.evaluate import Evaluator, HeldOutLoss


@dataclass(frozen=True)
class MixedLoss:
    """What an evaluation found; `each` has name, weight and loss of the stores."""

    each: list[tuple[str, int, HeldOutLoss]]

    @property
    def loss(self) -> float:
        """Nats per token of a text mixed by the weights."""
        return sum(weight * found.loss for _, weight, found in self.each) / sum(weight for _, weight, _ in self.each)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the same text; tokens of one store may be longer than those of another."""
        bits = [(weight * found.loss / math.log(2), found.bits_per_byte) for _, weight, found in self.each]
        n_bytes = sum(bit / by_byte for bit, by_byte in bits if by_byte)
        return sum(bit for bit, _ in bits) / n_bytes if n_bytes else 0.0

    def metrics(self) -> dict[str, float]:
        """Return the numbers of metrics.jsonl."""
        named = {f"{key}/{name}": value for name, _, found in self.each for key, value in found.metrics().items()}
        return {"val_loss": self.loss, "val_bits_per_byte": self.bits_per_byte, **named}

    def describe(self) -> str:
        """Return them for a person."""
        all_of_it = HeldOutLoss(self.loss, self.bits_per_byte, 0).describe()
        return f"{all_of_it} ({', '.join(f'{name} {found.loss:.4f}' for name, _, found in self.each)})"


class MixedEvaluator:
    """Evaluates on each store that has held-out text; `eval_iters` batches are dealt out by weight, one at least."""

    def __init__(self, config: TrainConfig, mixture: Mixture, tokenizer: Tokenizer) -> None:
        """Choose the rows.

        Raises:
            UserError: no store has held-out text, or one has less than a row of it.
        """
        found = mixture.held_out()
        if missing := set(mixture.names) - {name for _, name, _ in found}:
            log.note(f"without held-out text, and so left out of the held-out loss: {', '.join(sorted(missing))}")
        batches = share_out([weight for _, _, weight in found], config.eval_iters)
        self.each = [
            (name, weight, Evaluator.of(config.model_copy(update={"eval_iters": max(1, n)}), store, tokenizer))
            for (store, name, weight), n in zip(found, batches, strict=True)
        ]
        self.before_batch: Callable[[], None] = lambda: None  # may raise, to stop in the middle

    @property
    def n_batches(self) -> int:
        """The number of batches of an evaluation."""
        return sum(evaluator.n_batches for _, _, evaluator in self.each)

    def run(
        self, loss_sum: Callable[[Tensor], Tensor], device: torch.device, most_batches: int | None = None
    ) -> MixedLoss:
        """Return the losses, given `loss_sum(rows (B, T+1))` in nats; with `most_batches`, of the first few alone."""
        left, each = math.inf if most_batches is None else most_batches, []
        for name, weight, evaluator in self.each:
            if left <= 0:
                break
            evaluator.before_batch = self.before_batch
            each.append((name, weight, evaluator.run(loss_sum, device, None if math.isinf(left) else int(left))))
            left -= evaluator.n_batches
        return MixedLoss(each)


def evaluator_of(config: TrainConfig, mixture: Mixture, tokenizer: Tokenizer) -> Evaluator | MixedEvaluator:
    """Return what a run evaluates on.

    Raises:
        UserError: there is no held-out text, or less than one row of it.
    """
    if len(mixture.stores) == 1:
        return Evaluator.of(config, mixture.stores[0], tokenizer)
    return MixedEvaluator(config, mixture, tokenizer)
