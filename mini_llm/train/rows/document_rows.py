"""Rows that begin where documents begin, without losing a token.

A long document is cut from its first token on; what is left of each at its end, shorter than a row, is strung together
with the other ends and cut in turn. So the text before a row's first token is rarely another document's.
"""

from __future__ import annotations

import numpy as np

from mini_llm.data.token_store import TokenSplit
from mini_llm.errors import UserError


class DocumentRows:
    """All rows of `block_size` + 1 tokens; 24 bytes of memory a document."""

    def __init__(self, split: TokenSplit, block_size: int) -> None:
        """Read where the documents of `split` begin.

        Raises:
            UserError: the places do not rise from 0 to below the number of tokens.
        """
        self.split, self.block_size = split, block_size
        self.starts = split.document_starts().astype(np.int64)
        lengths = np.diff(self.starts, append=split.n_tokens)
        if self.starts[0] or (lengths <= 0).any():
            raise UserError(
                f"the store's index of documents is damaged: it must rise from 0 to below {split.n_tokens:,} tokens",
                "make the store again with mini-llm prepare",
            )
        self.full_rows = np.cumsum(lengths // block_size)  # in each document and all before it
        self.end_tokens = np.cumsum(lengths % block_size)
        self.n_rows = int(self.full_rows[-1] + self.end_tokens[-1] // block_size)

    def read(self, row: int, shift: int) -> np.ndarray:
        """Return row 0 .. n_rows - 1.

        The ends form a ring, and `shift` turns it: no token always falls into the gap that is left over.
        """
        n_full = int(self.full_rows[-1])
        if row >= n_full:
            return self._read_ends((row - n_full) * self.block_size + shift)
        document = int(np.searchsorted(self.full_rows, row, side="right"))
        before = int(self.full_rows[document - 1]) if document else 0
        start = int(self.starts[document]) + (row - before) * self.block_size
        ids = self.split.read(start, min(self.block_size + 1, self.split.n_tokens - start))
        if len(ids) <= self.block_size:  # after the last document comes the first
            ids = np.append(ids, self.split.read(0, 1))
        return ids

    def _read_ends(self, position: int) -> np.ndarray:
        parts, missing, total = [], self.block_size + 1, int(self.end_tokens[-1])
        while missing:
            position %= total
            document = int(np.searchsorted(self.end_tokens, position, side="right"))
            left = int(self.end_tokens[document]) - position
            end = self.starts[document + 1] if document + 1 < len(self.starts) else self.split.n_tokens
            parts.append(self.split.read(int(end) - left, min(left, missing)))
            position, missing = position + len(parts[-1]), missing - len(parts[-1])
        return np.concatenate(parts)
