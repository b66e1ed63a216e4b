"""Batches: which rows a step sees is a pure function of (seed, step).

The tokens are cut into rows; each epoch visits every row once, in an order that a small cipher computes row by row.
So there is no list to shuffle, nothing to save for resuming, and a terabyte costs as little memory as a megabyte.
Letters: R rows, T tokens of a row.
"""

import numpy as np
import torch
from torch import Tensor

from mini_llm.data.token_store import TokenSplit
from mini_llm.train.rows.document_rows import DocumentRows
from mini_llm.train.rows.row_length import check_length


def permute(index_R: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Return where each index of 0..n-1 goes in a pseudo-random permutation, in constant memory.

    A Feistel network (one round for each of `keys`) permutes the smallest 4^k >= n; an index that lands outside
    0..n-1 goes through again until it lands inside ("cycle walking", Black and Rogaway 2002): under 4 tries on average.
    """
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> shift, x & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        return (left << shift) | right

    result = once(index_R.astype(np.uint64))
    while (outside := result >= n).any():
        result[outside] = once(result[outside])
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finalizer of splitmix64, Steele et al. 2014); products wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TrainLoader:
    """Rows of `block_size` + 1 tokens for each step; the last token is only a target."""

    def __init__(
        self, split: TokenSplit, *, block_size: int, rows_per_step: int, seed: int, align_documents: bool = False
    ) -> None:
        """Prepare to cut `split`: everywhere alike, or with `align_documents` from each document's first token on.

        Raises:
            UserError: the split is shorter than one row.
        """
        check_length(split, block_size, "train")
        self.split, self.block_size, self.rows_per_step, self.seed = split, block_size, rows_per_step, seed
        self.first_row = 0  # of step 0, had all steps the size of today's
        # One row less than would fit, so that each epoch can begin at another offset and cut the text elsewhere.
        self.rows_per_epoch = max(1, split.n_tokens // block_size - 1)
        self.documents = DocumentRows(split, block_size) if align_documents else None
        if self.documents:
            self.rows_per_epoch = self.documents.n_rows

    def rows(self, step: int) -> Tensor:
        """Return the rows (R, T+1), int64, of a step (0, 1, ...)."""
        return self.rows_from(self.row_of(step))

    def row_of(self, step: int) -> int:
        """Return the number of a step's first row among those of all epochs."""
        return self.first_row + step * self.rows_per_step

    def rows_from(self, first: int) -> Tensor:
        """Return a step's number of rows, beginning with row `first` of all epochs."""
        return self.rows_at(np.arange(first, first + self.rows_per_step))

    def rows_at(self, rows_R: np.ndarray) -> Tensor:
        """Return the rows of these numbers, which must rise."""
        return torch.from_numpy(np.stack([self._read(place, shift) for place, shift in self._cuts(rows_R)]))

    def starts_at(self, rows_R: np.ndarray) -> np.ndarray:
        """Return where in the split the rows of these numbers begin (R), in the order of `rows_at`."""
        return np.array([shift + place * self.block_size for place, shift in self._cuts(rows_R)])

    def epoch(self, step: int) -> float:
        """Return how many times all rows have been seen before `step`."""
        return self.row_of(step) / self.rows_per_epoch

    def continue_at(self, step: int, epochs: float) -> None:
        """Let `step` begin where all rows have been seen `epochs` times, however large the steps before it were."""
        self.first_row = round(epochs * self.rows_per_epoch) - step * self.rows_per_step

    def _cuts(self, rows_R: np.ndarray) -> list[tuple[int, int]]:
        """Return of each row which one of the split it is, and by how many tokens its epoch cuts later."""
        found = []
        for epoch in np.unique(rows_R // self.rows_per_epoch):
            index_R = rows_R[rows_R // self.rows_per_epoch == epoch] % self.rows_per_epoch
            offset, *keys = np.random.SeedSequence([self.seed, int(epoch)]).generate_state(5, np.uint64)
            spare = self.split.n_tokens - 1 - self.rows_per_epoch * self.block_size
            room = self.block_size if self.documents else min(spare, self.block_size - 1) + 1
            places = permute(index_R, self.rows_per_epoch, np.array(keys))
            found += [(place, int(offset) % room) for place in places.tolist()]
        return found

    def _read(self, place: int, shift: int) -> np.ndarray:
        if self.documents:
            return self.documents.read(place, shift)
        return self.split.read(shift + place * self.block_size, self.block_size + 1)


def shorten(rows: Tensor, parts: int) -> Tensor:
    """Cut rows (R, T+1) into rows (R * parts, T / parts + 1) with the same targets, each once."""
    length = (rows.shape[1] - 1) // parts
    return rows.unfold(1, length + 1, length).flatten(0, 1)
