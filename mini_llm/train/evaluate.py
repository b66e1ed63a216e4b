"""Held-out loss: the same tokens every time, so that two numbers can be compared.

Reported in nats per token, and in bits per byte of text, which does not depend on the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mini_llm.data.token_store import TokenSplit, TokenStore
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.rows.row_length import check_length


@dataclass(frozen=True)
class HeldOutLoss:
    """What an evaluation found."""

    loss: float  # nats per token
    bits_per_byte: float
    tokens: int

    def metrics(self) -> dict[str, float]:
        """Return the numbers of metrics.jsonl."""
        return {"val_loss": self.loss, "val_bits_per_byte": self.bits_per_byte}

    def describe(self) -> str:
        """Return them for a person."""
        return f"{self.loss:.4f} nats/token, {self.bits_per_byte:.4f} bits/byte"


class Evaluator:
    """Evaluates on `max_rows` rows spread evenly over a split, or on all of it when it is shorter."""

    def __init__(
        self, split: TokenSplit, *, block_size: int, batch_size: int, max_rows: int | None, token_bytes: np.ndarray
    ) -> None:
        """Choose the rows.

        Raises:
            UserError: the split is shorter than one row.
        """
        check_length(split, block_size, "val")
        self.split, self.block_size, self.batch_size = split, block_size, batch_size
        n_rows = (split.n_tokens - 1) // block_size
        chosen = n_rows if max_rows is None else min(n_rows, max_rows)
        self.starts = (np.arange(chosen) * n_rows // chosen) * block_size
        self.token_bytes = torch.from_numpy(token_bytes)
        self.before_batch: Callable[[], None] = lambda: None  # may raise, to stop in the middle

    @classmethod
    def of(cls, config: TrainConfig, store: TokenStore, tokenizer: Tokenizer) -> Evaluator:
        """Return what a run evaluates on: `eval_iters` batches of held-out rows.

        Raises:
            UserError: the store has no held-out text, or less than one row of it.
        """
        return cls(
            store.split("val"),
            block_size=config.block_size,
            batch_size=config.batch_size,
            max_rows=config.eval_iters * config.batch_size,
            token_bytes=tokenizer.token_bytes(),
        )

    @property
    def n_batches(self) -> int:
        """The number of batches of an evaluation."""
        return -(-len(self.starts) // self.batch_size)

    @torch.no_grad()
    def run(
        self, loss_sum: Callable[[Tensor], Tensor], device: torch.device, most_batches: int | None = None
    ) -> HeldOutLoss:
        """Return the loss, given `loss_sum(rows (B, T+1))` in nats; with `most_batches`, that of the first few."""
        nats, n_bytes, n_tokens = 0.0, 0, 0
        for first in range(0, len(self.starts), self.batch_size)[:most_batches]:
            self.before_batch()
            starts = self.starts[first : first + self.batch_size]
            rows = torch.from_numpy(np.stack([self.split.read(int(s), self.block_size + 1) for s in starts]))
            nats += loss_sum(rows.to(device)).item()
            n_bytes += int(self.token_bytes[rows[:, 1:]].sum())
            n_tokens += rows[:, 1:].numel()
        return HeldOutLoss(nats / n_tokens, nats / math.log(2) / max(1, n_bytes), n_tokens)
