"""A KV cache for many texts at once: each has a slot of its own and its own length, and joins and leaves at will.

Place s of a slot holds the token at position s, so what lies beyond a text's end is never seen: its position is in the
future. The room grows by doubling, so that nobody pays for a context that nobody uses.
Letters: L layers, B slots, J key/value heads, S places, K head width, T new tokens, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm.model.config import ModelConfig

FIRST_BUCKET = 256  # places; then 512, 1024, ...


class SlotCache:
    """Keys and values of up to `n_slots` texts of up to `n_places` tokens.

    Args:
        spare: so many places come after these, for what is written and never looked at.
    """

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, *, spare: int = 0) -> None:
        self.config, self.spare = config, spare
        self.n_slots = self.n_places = 0
        shape_LBJSK = (config.n_layers, 0, config.n_kv_heads, 0, config.head_dim)
        self.keys_LBJSK = self.values_LBJSK = torch.empty(shape_LBJSK, device=device, dtype=dtype)

    def reserve(self, n_slots: int, n_places: int) -> bool:
        """Make room for at least so much and keep what is there; tell whether the tensors are new ones."""
        n_places = min(bucket(n_places), max(self.config.max_seq_len, n_places))
        if n_slots <= self.n_slots and n_places <= self.n_places:
            return False
        n_slots = max(1 << (n_slots - 1).bit_length(), self.n_slots)  # doubling here too: each growth copies all
        n_places = max(n_places, self.n_places)
        # Both before either is put in place: there may be memory for one alone.
        grown = [self._grown(tensor, n_slots, n_places) for tensor in (self.keys_LBJSK, self.values_LBJSK)]
        self.keys_LBJSK, self.values_LBJSK = grown
        self.n_slots, self.n_places = n_slots, n_places
        return True

    def _grown(self, old_LBJSK: Tensor, n_slots: int, n_places: int) -> Tensor:
        L, B, J, _, K = old_LBJSK.shape
        new_LBJSK = old_LBJSK.new_zeros((L, n_slots, J, n_places + self.spare, K))
        new_LBJSK[:, :B, :, : self.n_places] = old_LBJSK[:, :, :, : self.n_places]
        return new_LBJSK

    def clear(self, slot: int) -> None:
        """Forget what a slot holds: under a mask, a NaN that a text left behind would be one for the next text too."""
        for tensor in (self.keys_LBJSK, self.values_LBJSK):
            tensor[:, slot : slot + 1] = 0

    def copy_beginning(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` tokens of slot `source`."""
        for tensor in (self.keys_LBJSK, self.values_LBJSK):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]


def bucket(n_places: int) -> int:
    """Return the next power of two, and at least 256."""
    return max(FIRST_BUCKET, 1 << (n_places - 1).bit_length())


class SlotView:
    """Some slots of a SlotCache as the cache that `Transformer.forward` takes: T new tokens for each slot.

    Args:
        slots: which ones; B of them.
        n_places: so many places of each are looked at.
    """

    padded = True  # the mask decides who sees whom, never a short cut

    def __init__(self, cache: SlotCache, slots: Sequence[int], n_places: int) -> None:
        self.cache, self.n_places = cache, n_places
        self.slots_B1 = torch.tensor(slots, device=cache.keys_LBJSK.device)[:, None]
        # A slice where one slot is read: no copy. Of numbers the host knows: to ask a GPU for one is to wait for it.
        self.read = slice(slots[0], slots[0] + 1) if len(slots) == 1 else self.slots_B1[:, 0]

    def extend(self, positions_BT: Tensor) -> Tensor:
        """Take the places for tokens at these positions; return the positions (B, S) that the places stand for."""
        self.positions_BT = positions_BT
        return torch.arange(self.n_places, device=positions_BT.device).expand(len(positions_BT), -1)

    def store(self, layer: int, k_BJTK: Tensor, v_BJTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values to their places; return those of all places looked at."""
        found = []
        for tensor_LBJSK, new_BJTK in ((self.cache.keys_LBJSK, k_BJTK), (self.cache.values_LBJSK, v_BJTK)):
            tensor_BJSK = tensor_LBJSK[layer]
            tensor_BJSK[self.slots_B1, :, self.positions_BT] = new_BJTK.transpose(1, 2)
            found.append(tensor_BJSK[self.read, :, : self.n_places])
        return found[0], found[1]
