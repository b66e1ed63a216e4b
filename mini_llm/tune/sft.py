"""Supervised fine-tuning: a model that continues text learns to answer, from conversations.

It is the trainer's loop with another objective: rows packed with whole conversations, of which only the answers count,
and, with `replay`, rows of the base's own text against forgetting. Papers: arXiv 2203.02155 (the step), 2603.04964
(replay).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.data.mixture import Mixture
from mini_llm.errors import UsageError, UserError
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.evaluate import Evaluator
from mini_llm.train.evaluate_mixture import MixedEvaluator, evaluator_of
from mini_llm.train.rows.dataloader import TrainLoader
from mini_llm.train.rows.mixed_rows import loader_of
from mini_llm.train.run.kept import Kept
from mini_llm.train.train import AfterEvaluation, train
from mini_llm.tune.adapter_files import begin
from mini_llm.tune.answer_loss import answer_loss_sum
from mini_llm.tune.config import SftConfig, with_base, with_steps
from mini_llm.tune.conversations import read_set, refuse_without_held_out, tell_of_few
from mini_llm.tune.letters import write_letters
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.rows import ConversationRows
from mini_llm.user_files import above, kind_of

Packed = tuple[PackedRows, PackedRows]  # rows to learn from, rows held out


def sft(config: SftConfig, after_evaluation: AfterEvaluation | None = None) -> Path:
    """Fine-tune, or go on, and return the run folder.

    Raises:
        UsageError, UserError: as `with_base`, `read_set` and `train`.
        Interrupted: as `train`.
    """
    config, packed = prepared(config)
    return train(config, after_evaluation, lambda fitting: Answers(fitting, packed))


def prepared(config: SftConfig) -> tuple[SftConfig, Packed]:
    """Return the settings in full, and the conversations in rows, those to learn from and those held out."""
    config = with_base(config)
    tokenizer = Tokenizer.load(resolve_checkpoint(config.base))
    if config.replayed_rows:
        base_text(config, tokenizer)  # refused now, not when all conversations have been read
    block, fraction = config.block_size, config.val_fraction
    *sets, counts = read_set(
        config.data, tokenizer, block_size=block, val_fraction=fraction, merge_turns=config.merge_turns
    )
    refuse_without_held_out(sets[1], counts, fraction)
    pad_id = tokenizer.pad_id or 0  # fills rows; never a target and seen by nobody, so any will do
    learned, held_out = (PackedRows(found, block_size=block, pad_id=pad_id, seed=config.seed) for found in sets)
    tell_of_few(counts, learned.n_rows, config.chat_rows)
    config = with_steps(config, learned.n_rows)
    text = f" and {config.replayed_rows} of replayed text" if config.replayed_rows else ""
    log.info(
        f"{learned.n_rows:,} rows of {block:,} tokens, {learned.padding:.1%} of them padding; "
        f"{config.max_iters:,} steps of {config.chat_rows} rows{text}"
    )
    return config, (learned, held_out)


def base_text(config: SftConfig, tokenizer: Tokenizer) -> Mixture:
    """Return the text that is replayed: the store of the base's own run, or the one that was named.

    Raises:
        UserError: it is not there any more, damaged, or another tokenizer's.
    """
    for share in config.stores:
        if kind_of(share.path) == "nothing":
            raise UserError(
                f"replay={config.replay:g} reads the text that the base learned, and there is no token store at "
                f"{share.path}",
                above(share.path, "say where it lies now: data_dir=DIR; or leave out replay"),
            )
    mixture = Mixture.open(config.data_dir)
    if mixture.fingerprints["tokenizer"] != tokenizer.fingerprint:
        raise UserError(
            f"the text in {config.data_names} was made by another tokenizer than that of {config.base}",
            "name the base's own store with data_dir=..., or replay=0",
        )
    return mixture


class Answers:
    """The objective of fine-tuning; see `train.objective.Objective`."""

    reads_ahead = deals_out_rows = True
    has_mfu = False  # the head scores answers alone, and what lora freezes needs no gradient

    def __init__(self, config: SftConfig | Any, packed: Packed) -> None:
        self.config = config
        self.base = resolve_checkpoint(config.base)
        self.tokenizer = Tokenizer.load(self.base)
        self.train_rows, self.held_out = packed
        text = self.train_rows.conversations.fingerprint()
        self.fingerprints = {"tokenizer": self.tokenizer.fingerprint, "text": text}
        self.text = base_text(config, self.tokenizer) if config.replayed_rows else None
        self.replay = self._replayed(self.text) if self.text else None
        self.first_step = self.first_row = 0  # see `continue_at`

    def _replayed(self, mixture: Mixture) -> TrainLoader:
        return loader_of(
            mixture,
            block_size=self.config.block_size,
            rows_per_step=self.config.replayed_rows,
            seed=self.config.seed + 1,
        )

    @cached_property
    def evaluator(self) -> AnswerEvaluator:
        """Held-out conversations, and held-out text where some is replayed."""
        text = evaluator_of(self.config, self.text, self.tokenizer) if self.text else None
        return AnswerEvaluator(self.held_out, self.config.batch_size, self.config.eval_iters, text)

    def verify(self) -> None:
        """Compare the replayed text with its checksums; the conversations have been read already.

        Raises:
            UserError: a shard is damaged.
        """
        if self.text:
            self.text.verify()

    def initialise(self, model: Transformer) -> Kept | None:
        """Give the model the base's weights, and LoRA where it is asked for; see `begin`."""
        c = self.config
        write = self._write_letters if c.letters else None
        return begin(model, self.base, c.base, c.lora, self.tokenizer, c.seed, write)

    def _write_letters(self, base: Transformer) -> None:
        write_letters(base, self.tokenizer, self.config.letters, self.rows(0).ids[:, :-1], self.config.seed)

    def example(self) -> ConversationRows:
        """Return a micro-batch."""
        return self.rows(self.first_step)[: self.config.batch_size]

    def rows(self, step: int) -> ConversationRows:
        """Return the rows of a step: conversations, then replayed text.

        Raises:
            UserError: that text was changed after it was written. A large one is read meanwhile.
        """
        chat = self.train_rows.rows(self.first_row + step * self.config.chat_rows, self.config.chat_rows)
        if self.replay is None or self.text is None:
            return chat
        self.text.poll_checks(wait=step + 1 >= self.config.max_iters)
        return ConversationRows.joined([chat, ConversationRows.of_text(self.replay.rows(step))])

    def loss_sum(self, model: Transformer, rows: ConversationRows, dtype: torch.dtype) -> Tensor:
        """Return the summed loss of what is learned, in nats."""
        return answer_loss_sum(model, rows, dtype)

    def targets(self, rows: ConversationRows) -> int:
        """Return how many tokens are learned; every row holds an answer, so there is always one."""
        return rows.n_targets()

    def tokens(self, rows: ConversationRows) -> int:
        """Return how many tokens are read, padding included."""
        return rows.ids[:, 1:].numel()

    def noted(self, step: int) -> dict[str, float]:
        """Return nothing: the loss says it all."""
        return {}

    def epoch(self, step: int) -> float:
        """Return how many times all conversations have been seen before `step`."""
        return (self.first_row + step * self.config.chat_rows) / self.train_rows.n_rows

    def continue_at(self, step: int, epochs: float) -> None:
        """Let `step` begin where all conversations have been seen `epochs` times; replayed text goes along."""
        chat_rows = self.config.chat_rows
        self.first_step, self.first_row = step, round(epochs * self.train_rows.n_rows) - step * chat_rows
        if self.replay:
            self.replay.first_row = round(self.first_row / chat_rows * self.config.replayed_rows)


@dataclass(frozen=True)
class AnswerLoss:
    """What an evaluation found: the loss of held-out answers, and of plain text where some is replayed."""

    loss: float  # nats per learned token
    bits_per_byte: float  # of the answers
    text_bits_per_byte: float | None

    def metrics(self) -> dict[str, float]:
        """Return the numbers of metrics.jsonl."""
        text = {} if self.text_bits_per_byte is None else {"text_bits_per_byte": self.text_bits_per_byte}
        return {"val_loss": self.loss, "val_bits_per_byte": self.bits_per_byte, **text}

    def describe(self) -> str:
        """Return them for a person."""
        text = f", {self.text_bits_per_byte:.4f} bits/byte of text" if self.text_bits_per_byte is not None else ""
        return f"{self.loss:.4f} nats/token of answers, {self.bits_per_byte:.4f} bits/byte{text}"


class AnswerEvaluator:
    """Evaluates on held-out conversations: all of them, or the rows of `eval_iters` batches."""

    def __init__(
        self, held_out: PackedRows, batch_size: int, eval_iters: int, text: Evaluator | MixedEvaluator | None
    ) -> None:
        """Choose the rows.

        Raises:
            UsageError: nothing is held out.
        """
        if not held_out.n_rows:
            raise UsageError("no conversation is held out", "give more data, or a larger val_fraction=...")
        self.held_out, self.batch_size, self.text = held_out, batch_size, text
        chosen = min(held_out.n_rows, eval_iters * batch_size)
        self.places = [i * held_out.n_rows // chosen for i in range(chosen)]
        self.before_batch: Callable[[], None] = lambda: None

    @property
    def n_batches(self) -> int:
        """The number of batches of an evaluation."""
        return -(-len(self.places) // self.batch_size) + (self.text.n_batches if self.text else 0)

    @torch.no_grad()
    def run(
        self, loss_sum: Callable[[Any], Tensor], device: torch.device, most_batches: int | None = None
    ) -> AnswerLoss:
        """Return the losses, given `loss_sum(rows)` in nats."""
        nats, n_targets = 0.0, 0
        for first in range(0, len(self.places), self.batch_size)[:most_batches]:
            self.before_batch()
            rows = self.held_out.in_order(self.places[first : first + self.batch_size])
            nats += loss_sum(rows.to(device)).item()
            n_targets += rows.n_targets()
        text = None
        if self.text is not None:
            self.text.before_batch = self.before_batch
            found = self.text.run(lambda rows: loss_sum(_text_rows(rows)), device, most_batches)
            text = found.bits_per_byte
        of_set = self.held_out.conversations
        bytes_a_target = of_set.learned_bytes / max(1, int(of_set.learned.sum()))
        bits = nats / math.log(2) / max(1e-9, n_targets * bytes_a_target)
        return AnswerLoss(nats / max(1, n_targets), bits, text)


def _text_rows(ids: Tensor) -> ConversationRows:
    return ConversationRows.of_text(ids.cpu()).to(ids.device)
