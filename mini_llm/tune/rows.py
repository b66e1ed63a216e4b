"""Rows of conversations: ids, what each counts as a target, and which document each belongs to.

Letters: R rows, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm.train.rows.tensor_rows import TensorRows


@dataclass(frozen=True)
class ConversationRows(TensorRows):
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

    def __getitem__(self, part: slice) -> ConversationRows:
        return ConversationRows(*(tensor[part] for tensor in self._tensors()))

    def n_targets(self) -> int:
        """Return how many tokens are learned."""
        return int((self.weights[:, 1:] != 0).sum())
