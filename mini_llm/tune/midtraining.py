"""Mid-training: conversations among the rows of pretraining's cool-down, so that its end sees what tuning will ask for.

Until the cool-down begins, a run is bit for bit what it would be without: one stable run can end with or without them.
Rows stay a pure function of the step. Such data late in pretraining count about twice: arXiv 2603.04964.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.objective import Objective, Pretraining, open_tokenizer
from mini_llm.train.soft_targets import SoftRows
from mini_llm.tune.answer_loss import answer_loss_sum
from mini_llm.tune.config import SftConfig
from mini_llm.tune.conversations import read_set
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.rows import ConversationRows

MixedRows = Tensor | SoftRows | ConversationRows
# Held out as `sft` would hold them out, so that what it evaluates on has not been learned before.
HELD_OUT: float = SftConfig.model_fields["val_fraction"].default


def objective_of(config: TrainConfig) -> Callable[[TrainConfig], Objective]:
    """Return what makes the objective of a pretraining: plain text, or with conversations where `mix` names some.

    Raises:
        UserError: the conversations or the tokens cannot be read.
    """
    if not config.mix.data:
        return Pretraining
    tokenizer = open_tokenizer(TokenStore.open(config.stores[0].path), config)
    packed = mixed_rows(config, tokenizer)
    return lambda fitting: MixedPretraining(fitting, packed)


def mixed_rows(
    config: TrainConfig, tokenizer: Tokenizer, *, val_fraction: float = HELD_OUT, merge_turns: bool = False
) -> PackedRows:
    """Return rows of the conversations of `mix.data`, but for what tuning would hold out of them.

    Raises:
        UserError: as `read_set`.
    """
    block = config.block_size
    learned, *_ = read_set(
        config.mix.data,
        tokenizer,
        block_size=block,
        val_fraction=val_fraction,
        merge_turns=merge_turns,
        setting="mix.data",
    )
    return PackedRows(learned, block_size=block, pad_id=tokenizer.pad_id or 0, seed=config.seed)


class MixedPretraining(Pretraining):
    """Foretell each next token of a store, and in the cool-down also the answers of conversations."""

    def __init__(self, config: TrainConfig, packed: PackedRows) -> None:
        """Open the tokens.

        Raises:
            UserError: they cannot be read or are too few.
        """
        super().__init__(config)
        self.packed = packed
        self.first_mixed = mixed_from(config)
        n = self._mixed_before(config.max_iters)
        if not n:
            raise UserError(
                f"mix.share={config.mix.share:g} of {config.rows_per_step} rows, in "
                f"{config.max_iters - self.first_mixed:,} steps of cool-down, is no row of conversations",
                "give a larger mix.share",
            )
        log.info(
            f"from step {self.first_mixed:,} on {n:,} rows of conversations, {n / packed.n_rows:.2g} times "
            f"the {packed.n_rows:,} that there are"
        )

    def _mixed_before(self, step: int) -> int:
        """Return how many rows of conversations the steps before `step` have had: the share, rounded down."""
        rows = max(0, step - self.first_mixed) * self.config.rows_per_step
        return math.floor(rows * self.config.mix.share + 1e-9)

    def rows(self, step: int) -> Any:
        """Return the rows of a step, as in `Pretraining`; in the cool-down plain text and then conversations.

        Raises:
            UserError: as `Pretraining.rows`.
        """
        if step < self.first_mixed:
            return super().rows(step)
        self.poll_checks(step)
        before, after = self._mixed_before(step), self._mixed_before(step + 1)
        # Text goes on where it was: what gives way to conversations is read later.
        ids = self.loader.rows_from(self.first_row_of(step))
        text = ConversationRows.of_text(ids[: self.config.rows_per_step - (after - before)])
        return ConversationRows.joined([text, self.packed.rows(before, after - before)])

    def loss_sum(self, model: Transformer, rows: MixedRows, dtype: torch.dtype) -> Tensor:
        """Return the summed loss of rows in nats: of every token of a text, and of answers."""
        if isinstance(rows, ConversationRows):
            return answer_loss_sum(model, rows, dtype)
        return super().loss_sum(model, rows, dtype)

    def targets(self, rows: MixedRows) -> int:
        """Return how many tokens are learned."""
        return rows.n_targets() if isinstance(rows, ConversationRows) else super().targets(rows)

    def tokens(self, rows: MixedRows) -> int:
        """Return how many tokens are read."""
        return super().targets(rows.ids if isinstance(rows, ConversationRows) else rows)

    def first_row_of(self, step: int) -> int:
        """Return how many rows of text have been read before `step`."""
        return super().first_row_of(step) - self._mixed_before(step)

    def epoch(self, step: int) -> float:
        """Return how many times all rows of text have been seen before `step`."""
        return self.loader.epoch(step) - self._mixed_before(step) / self.loader.rows_per_epoch

    def continue_at(self, step: int, epochs: float) -> None:
        """Let `step` begin where all rows of text have been seen `epochs` times."""
        self.loader.continue_at(step, epochs)
        self.loader.first_row += self._mixed_before(step)


def mixed_from(config: TrainConfig) -> int:
    """Return the first step of the cool-down."""
    end = config.lr_decay_iters or config.max_iters
    return min(config.max_iters, max(config.warmup_iters, math.ceil(end * (1 - config.cooldown_fraction))))
