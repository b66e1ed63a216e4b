"""Direct preference optimisation: of two answers, the better one becomes more probable than the base held it.

No reward model and no sampling: the loss is one of classification, by how much the model and its reference, the base,
differ on both answers. It is the loop of fine-tuning with another objective. Paper: arXiv 2305.18290.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.device import pick_device, pick_dtype
from mini_llm.errors import UsageError, UserError
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.train import AfterEvaluation, train
from mini_llm.tune.config import with_steps
from mini_llm.tune.conversations import refuse_without_held_out, tell_of_few
from mini_llm.tune.dpo_config import DpoConfig, with_chat_base
from mini_llm.tune.log_probs import document_log_probs
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.pair_rows import PairRows, most_pairs
from mini_llm.tune.pair_set import read_pair_set
from mini_llm.tune.reference import computed, kept_reference
from mini_llm.tune.sft import Answers, Packed

# What is told of a step, each the mean over its pairs.
NUMBERS = (
    *("preference_loss", "accuracy", "margin", "chosen_reward", "rejected_reward"),
    *("chosen_log_p", "rejected_log_p", "chosen_tokens", "rejected_tokens"),
)
# Of the first loss: two equal models differ by rounding alone. Half precision rounds another way when it is compiled.
TOLERANCE = {torch.float32: 1e-5}
TOLERANCE_OF_HALF = 0.02


def dpo(config: DpoConfig, after_evaluation: AfterEvaluation | None = None) -> Path:
    """Learn from preferences, or go on, and return the run folder.

    Raises:
        UsageError, UserError: as `with_chat_base`, `read_pair_set`, `kept_reference` and `train`; or the first loss is
            not that of two equal models.
        Interrupted: as `train`.
    """
    config, packed = prepared(config)
    return train(config, after_evaluation, lambda fitting: Preferences(fitting, packed))


def prepared(config: DpoConfig) -> tuple[DpoConfig, Packed]:
    """Return the settings in full, and the pairs in rows, those to learn from and those held out."""
    config = with_chat_base(config)
    tokenizer = Tokenizer.load(resolve_checkpoint(config.base))
    block, fraction = config.block_size, config.val_fraction
    *sets, counts = read_pair_set(
        config.data, tokenizer, block_size=block, val_fraction=fraction, merge_turns=config.merge_turns
    )
    refuse_without_held_out(sets[1], counts, fraction)
    pad_id = tokenizer.pad_id or 0
    learned, held_out = (
        PackedRows(found, block_size=block, pad_id=pad_id, seed=config.seed, together=2) for found in sets
    )
    tell_of_few(counts, learned.n_rows, config.chat_rows)
    full = with_steps(config, learned.n_rows)
    assert isinstance(full, DpoConfig)
    log.info(
        f"{learned.n_rows:,} rows of {learned.room:,} tokens, {learned.padding:.1%} of them padding; "
        f"{full.max_iters:,} steps of {full.chat_rows} rows"
    )
    return full, (learned, held_out)


class Preferences(Answers):
    """The objective of learning from preferences; see `train.objective.Objective`."""

    reads_ahead = False  # `noted` tells of the rows that were read last
    deals_out_rows = False  # nor has the frozen model been spread

    def __init__(self, config: DpoConfig | Any, packed: Packed, *, rehearsal: bool = False) -> None:
        """Read or compute the reference; a `rehearsal` computes that of three steps, and writes nothing.

        Raises:
            UserError: as `kept_reference`.
        """
        super().__init__(config, packed)
        device = pick_device(config.device)
        self.preference, self.sft_weight = config.preference, config.sft_weight
        self.n_pairs = most_pairs(*packed)
        self.step, self.dtype = 0, pick_dtype(config.dtype, device)
        self.sums = torch.zeros(1 + len(NUMBERS), device=device)  # of the pairs since `restart`, and how many they are
        if rehearsal:
            some = self.train_rows.places(0, 3 * config.rows_per_step)
            places = [sorted(set(some)), self.evaluator.places[: config.batch_size]]
            self.references = computed(config, self.base, packed, places)
        else:
            self.references = kept_reference(config, self.base, packed)

    @cached_property
    def evaluator(self) -> PairEvaluator:  # type: ignore[override]
        """Held-out pairs."""
        return PairEvaluator(self)

    def rows(self, step: int) -> PairRows:  # type: ignore[override]
        """Return the rows of a step."""
        self.step = step
        self.sums.zero_()
        n = self.config.rows_per_step
        places = self.train_rows.places(self.first_row + step * n, n)
        return PairRows.of(self.train_rows, places, self.references[0], self.n_pairs)

    def example(self) -> PairRows:  # type: ignore[override]
        """Return a micro-batch."""
        return self.rows(self.first_step)[: self.config.batch_size]

    def loss_sum(self, model: Transformer, rows: PairRows, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        """Return the summed loss of pairs, and add to `sums` what there is to tell of them."""
        log_p_RD, lengths_RD = document_log_probs(model, rows.rows, dtype, 2 * self.n_pairs)
        log_p_P2, lengths_P2, reference_P2 = (x.reshape(-1, 2) for x in (log_p_RD, lengths_RD, rows.reference))
        is_pair_P = lengths_P2[:, 0] > 0
        lengths_P2 = lengths_P2.clamp(min=1)
        rewards_P2 = self.preference.rewards(log_p_P2, reference_P2, lengths_P2)
        losses_P = self.preference.losses(rewards_P2)
        chosen_P = -log_p_P2[:, 0] / lengths_P2[:, 0]
        with torch.no_grad():
            margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
            # Half in order where the two are equal but for rounding.
            in_order_P = torch.heaviside(margins_P.round(decimals=5), margins_P.new_tensor(0.5))
            told = [losses_P, in_order_P, margins_P]
            told += [x_P2[:, side] for x_P2 in (rewards_P2, log_p_P2, lengths_P2) for side in (0, 1)]
            told_KP = torch.stack([torch.ones_like(losses_P), *(x_P.float() for x_P in told)])
            self.sums += (told_KP * is_pair_P).sum(1)
        return ((losses_P + self.sft_weight * chosen_P) * is_pair_P).sum()

    def targets(self, rows: PairRows) -> int:  # type: ignore[override]
        """Return how many pairs there are: each counts the same, however long its answers are."""
        return sum(len(documents.unique()) // 2 for documents in rows.rows.documents)

    def tokens(self, rows: PairRows) -> int:  # type: ignore[override]
        """Return how many tokens are read, padding included."""
        return super().tokens(rows.rows)

    def noted(self, step: int) -> dict[str, float]:
        """Return what there is to tell of the step.

        Raises:
            UserError: it was the first one, and model and reference differed.
        """
        numbers = self.means()
        if self.step == 0:
            self._check_first(numbers["preference_loss"])
        if not self.sft_weight:  # the loss is the same number
            del numbers["preference_loss"]
        return numbers

    def means(self) -> dict[str, float]:
        """Return the means over the pairs that were counted in `sums`."""
        n, *sums = self.sums.tolist()
        return {name: value / n for name, value in zip(NUMBERS, sums, strict=True)}

    def _check_first(self, loss: float) -> None:
        preference = self.preference
        if preference.loss == "simpo":
            return
        expected = preference.losses(torch.zeros(1, 2, dtype=torch.float64)).item()
        if not abs(loss - expected) <= TOLERANCE.get(self.dtype, TOLERANCE_OF_HALF) * max(1, expected):
            name = f"{expected:.6f}" if preference.loss == "ipo" else "ln 2 = 0.693147"
            raise UserError(
                f"the first loss of preference is {loss:.6f}, not {name}: the model is not its reference",
                f"delete {Path(self.config.out_dir) / 'reference.safetensors'} and begin anew; compile=false and "
                "dtype=float32 tell whether this machine's arithmetic is the cause",
            )


@dataclass(frozen=True)
class PairLoss:
    """What an evaluation found, over held-out pairs."""

    loss: float
    numbers: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """Return the numbers of metrics.jsonl."""
        return {"val_loss": self.loss, **{f"val_{name}": value for name, value in self.numbers.items()}}

    def describe(self) -> str:
        """Return them for a person."""
        numbers = self.numbers
        return (
            f"{self.loss:.4f} a pair, {numbers['accuracy']:.1%} of pairs in order, margin {numbers['margin']:.3f}, "
            f"rewards {numbers['chosen_reward']:.3f} and {numbers['rejected_reward']:.3f}"
        )


class PairEvaluator:
    """Evaluates on held-out pairs: all of them, or the rows of `eval_iters` batches."""

    def __init__(self, objective: Preferences) -> None:
        """Choose the rows.

        Raises:
            UsageError: nothing is held out.
        """
        held_out, config = objective.held_out, objective.config
        if not held_out.n_rows:
            raise UsageError("no pair is held out", "give more pairs, or a larger val_fraction=...")
        self.objective, self.batch_size = objective, config.batch_size
        chosen = min(held_out.n_rows, config.eval_iters * config.batch_size)
        self.places = [i * held_out.n_rows // chosen for i in range(chosen)]
        self.before_batch: Callable[[], None] = lambda: None

    @property
    def n_batches(self) -> int:
        """The number of batches of an evaluation."""
        return -(-len(self.places) // self.batch_size)

    @torch.no_grad()
    def run(self, loss_sum: Callable[[Any], Tensor], device: torch.device, most_batches: int | None = None) -> PairLoss:
        """Return the means over the held-out pairs, given the objective's `loss_sum(rows)`."""
        of = self.objective
        of.sums.zero_()
        loss, n = 0.0, 0
        for first in range(0, len(self.places), self.batch_size)[:most_batches]:
            self.before_batch()
            places = self.places[first : first + self.batch_size]
            rows = PairRows.of(of.held_out, places, of.references[1], of.n_pairs)
            loss += loss_sum(rows.to(device)).item()
            n += sum(len(of.held_out.plan[place]) // 2 for place in places)
        return PairLoss(loss / n, of.means())
