"""Packing: conversations of many lengths in rows of one, planned once, each whole, with little room wasted.

The longest go first, each into the fullest row that still has room (best fit decreasing): at most 11/9 of the fewest
rows possible, and in practice a few per cent. The plan is fixed; each epoch visits its rows in another order, by the
cipher of the pretraining loader, so that which rows a step sees is a pure function of (seed, step).
"""

from __future__ import annotations

import numpy as np
import torch

from mini_llm.train.rows.dataloader import permute
from mini_llm.tune.conversations import ConversationSet
from mini_llm.tune.rows import ConversationRows


def plan_rows(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Return for each row which conversations it holds; none is longer than `room` tokens."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows by the tokens that they have left
    present = 0  # bit r: some row has r tokens left
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        assert length <= room, "a conversation longer than a row"
        fitting = present >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1  # the least room that is enough
            row = with_room[left].pop()
            if not with_room[left]:
                present &= ~(1 << left)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(index)
        with_room[left - length].append(row)
        present |= 1 << (left - length)
    return rows


class PackedRows:
    """The rows of a set of conversations, each with room for `together` of `block_size` + 1 tokens.

    So many conversations in a row are one thing, for instance a pair of two answers: always in one row, in their order.
    """

    def __init__(
        self, conversations: ConversationSet, *, block_size: int, pad_id: int, seed: int, together: int = 1
    ) -> None:
        self.conversations, self.pad_id, self.seed = conversations, pad_id, seed
        self.room = together * (block_size + 1)
        things = plan_rows(conversations.lengths.reshape(-1, together).sum(1), self.room)
        self.plan = [[together * i + k for i in row for k in range(together)] for row in things]

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        return len(self.plan)

    @property
    def padding(self) -> float:
        """The share of the rows that nothing fills."""
        return 1 - len(self.conversations.ids) / max(1, self.n_rows * self.room)

    def rows(self, first: int, n: int) -> ConversationRows:
        """Return the rows first .. first + n - 1 of an endless sequence of epochs."""
        return self.in_order(self.places(first, n))

    def places(self, first: int, n: int) -> list[int]:
        """Return which planned rows these are."""
        order = np.arange(first, first + n)
        places: list[int] = []
        for epoch in np.unique(order // self.n_rows):
            keys = np.random.SeedSequence([self.seed, int(epoch), 1]).generate_state(4, np.uint64)
            inside = order[order // self.n_rows == epoch] % self.n_rows
            places += permute(inside, self.n_rows, keys).tolist()
        return places

    def in_order(self, places: list[int]) -> ConversationRows:
        """Return the planned rows of these numbers."""
        ids = np.full((len(places), self.room), self.pad_id, np.int64)
        weights = np.zeros((len(places), self.room), np.float32)
        documents = np.zeros((len(places), self.room), np.int64)
        for row, place in enumerate(places):
            at = 0
            for number, index in enumerate(self.plan[place]):
                start, end = self.conversations.starts[index : index + 2]
                part = slice(at, at + end - start)
                ids[row, part] = self.conversations.ids[start:end]
                weights[row, part] = self.conversations.learned[start:end]
                documents[row, part] = number
                at = part.stop
            documents[row, at:] = len(self.plan[place])
        return ConversationRows(torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(documents))
