"""Rows of conversations: ids, what each counts as a target, and which document each belongs to.

Letters: R rows, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConversationRows:
    """R rows of T+1 tokens; the last is only a target.

    `weights` say how much the loss of each token counts as a target: 0 is not learned. Tokens of one document lie
    together and have one number; padding has a number of its own and weight 0.
    """

    ids: Tensor  # (R, T+1), int64
    weights: Tensor  # (R, T+1), float32
    documents: Tensor  # (R, T+1), int64

    @classmethod
    def of_text(cls, ids: Tensor) -> ConversationRows:
        """Return rows of plain text, of which every token is learned and sees all before it."""
        return cls(ids, torch.ones(ids.shape), torch.zeros_like(ids))

    @classmethod
    def joined(cls, parts: list[ConversationRows]) -> ConversationRows:
        """Return the rows of several, one after the other."""
        return cls(*(torch.cat(tensors) for tensors in zip(*(part._tensors() for part in parts), strict=True)))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ids, self.weights, self.documents

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> ConversationRows:
        return ConversationRows(*(tensor[part] for tensor in self._tensors()))

    def split(self, n_rows: int) -> list[ConversationRows]:
        """Return them in parts of `n_rows`."""
        return [ConversationRows(*parts) for parts in zip(*(t.split(n_rows) for t in self._tensors()), strict=True)]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> ConversationRows:
        """Return them on `device`."""
        return ConversationRows(*(tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()))

    def pin_memory(self) -> ConversationRows:
        """Return them in memory that a GPU can read by itself."""
        return ConversationRows(*(tensor.pin_memory() for tensor in self._tensors()))

    def n_targets(self) -> int:
        """Return how many tokens are learned."""
        return int((self.weights[:, 1:] != 0).sum())
