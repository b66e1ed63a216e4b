"""Rows of pairs: conversations in rows, and what the reference thought of each answer.

Document 2p of a row is the better answer of its pair p, document 2p + 1 the worse one: a pair is never parted, however
rows are dealt out to micro-batches. Letters: R rows, P pairs that a row has room for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm.tune.packing import PackedRows
from mini_llm.tune.rows import ConversationRows


@dataclass(frozen=True)
class PairRows:
    """R rows of pairs."""

    rows: ConversationRows
    reference: Tensor  # (R, P, 2), float32: sum of log p over each answer; 0 where there is no pair

    @classmethod
    def of(cls, packed: PackedRows, places: list[int], reference: Tensor, n_pairs: int) -> PairRows:
        """Return the planned rows at `places`, given the reference's log p of every conversation."""
        values = torch.zeros(len(places), 2 * n_pairs)
        for row, place in enumerate(places):
            inside = packed.plan[place]
            values[row, : len(inside)] = reference[inside]
        return cls(packed.in_order(places), values.view(len(places), n_pairs, 2))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> PairRows:
        return PairRows(self.rows[part], self.reference[part])

    def split(self, n_rows: int) -> list[PairRows]:
        """Return them in parts of `n_rows`."""
        parts = zip(self.rows.split(n_rows), self.reference.split(n_rows), strict=True)
        return [PairRows(rows, reference) for rows, reference in parts]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> PairRows:
        """Return them on `device`."""
        moved = self.reference.to(device, non_blocking=non_blocking)
        return PairRows(self.rows.to(device, non_blocking=non_blocking), moved)

    def pin_memory(self) -> PairRows:
        """Return them in memory that a GPU can read by itself."""
        return PairRows(self.rows.pin_memory(), self.reference.pin_memory())


def most_pairs(*packed: PackedRows) -> int:
    """Return how many pairs the fullest row of all these holds."""
    return max((len(row) for rows in packed for row in rows.plan), default=0) // 2
