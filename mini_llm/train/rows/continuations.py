"""What followed the same tokens elsewhere: an n-gram model as one sorted list, asked for every token of a row.

The text's places are sorted by the token there, then by the one before it, and so on up to four. All places that share
their last one, two, three or four tokens are then neighbours, so two binary searches find them, and what came next
there is an estimate of what may come here. The longest context speaks first; the more often it was seen, the less it
leaves to the next shorter one (Witten and Bell 1991). What is left after the last stays unsaid.
Letters: R rows, T tokens of a row, N = R*T, S places sorted, M continuations of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Tokens of context, places looked at (an even sample, where there are more), and how often it must have been seen to
# speak for half of what is left to say.
ORDERS = ((4, 32, 1.0), (3, 32, 2.0), (2, 32, 4.0), (1, 96, 8.0))


class Continuations:
    """The places of some rows of text, sorted by what is there; 16 bytes of memory a token, 20 above two billion."""

    def __init__(self, rows: Tensor, starts_R: Tensor, vocab_size: int) -> None:
        """Sort every token of `rows` (R, T+1) but the last; row r is the text from `starts_R[r]` on."""
        self.bits = vocab_size.bit_length()  # of a token, or of `vocab_size`: there is none
        self.orders = [order for order in ORDERS if order[0] * self.bits < 64]
        self.longest = self.orders[0][0]
        self.nobody = vocab_size
        self.keys_S, order_N = self._keys(rows[:, :-1]).flatten().sort(stable=True)
        self.next_S = rows[:, 1:].flatten()[order_N].int()
        places_RT = starts_R[:, None] + torch.arange(rows.shape[1] - 1)
        self.places_S = places_RT.flatten()[order_N].to(torch.int32 if places_RT.max() < 2**31 - 1 else torch.int64)

    def _keys(self, ids_RT: Tensor) -> Tensor:
        """Return the tokens up to each place as one number, the nearest in the highest bits."""
        keys_RT = torch.zeros_like(ids_RT)
        for back in range(self.longest):
            before = torch.full_like(ids_RT, self.nobody)
            before[:, back:] = ids_RT[:, : ids_RT.shape[1] - back]
            keys_RT = (keys_RT << self.bits) | before
        return keys_RT

    def after(self, ids_RT: Tensor, starts_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what came after each token elsewhere: ids (R, T, M), and the share of each, 1 at most together.

        What lies in the row itself, which is the text from its start on, is left out.
        """
        R, T = ids_RT.shape
        keys_N, sorted_N = self._keys(ids_RT).flatten().sort()  # a search near the last one stays in the cache
        first_N1 = starts_R.repeat_interleave(T)[sorted_N, None].to(self.places_S.dtype)
        left_N = torch.ones(R * T)
        ids, shares = [], []
        for length, most, prior in self.orders:
            places_NM, there_NM, n_N = self._places(keys_N, length, most)
            at_NM = self.places_S.take(places_NM)
            there_NM &= (at_NM < first_N1) | (at_NM >= first_N1 + T)
            m_N = there_NM.sum(1)
            elsewhere_N = n_N * m_N / n_N.clamp(1, most)
            says_N = left_N * elsewhere_N / (elsewhere_N + prior)
            left_N = left_N - says_N
            ids.append(self.next_S.take(places_NM))
            shares.append(there_NM * (says_N / m_N.clamp(min=1))[:, None])
        back_N = sorted_N.argsort()
        return tuple(torch.cat(parts, 1).index_select(0, back_N).view(R, T, -1) for parts in (ids, shares))  # type: ignore[return-value]

    def _places(self, keys_N: Tensor, length: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return up to `most` indexes of places with the same `length` tokens, which are real, and how many are."""
        rest = (1 << self.bits * (self.longest - length)) - 1
        begin_N = torch.searchsorted(self.keys_S, keys_N & ~rest)
        n_N = torch.searchsorted(self.keys_S, keys_N | rest, right=True) - begin_N
        index_M = torch.arange(most)
        # The middle of each of `most` equal parts, or one after the other. float64: the same on every machine.
        step_N1 = (n_N.double() / most).clamp(min=1)[:, None]
        places_NM = begin_N[:, None] + ((index_M + 0.5) * step_N1).long()
        return places_NM.clamp(max=len(self.keys_S) - 1), index_M < n_N[:, None], n_N
