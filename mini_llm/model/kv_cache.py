"""KV cache: keep every layer's keys and values, so that a new token costs one step and not the whole text again.

Memory for one token: 2 * L * J * K numbers. The cache also knows the position of each slot, and so which are padding.
Letters: L layers, B batch, J key/value heads, S slots, T new tokens, K head width.
"""

import torch
from torch import Tensor

from mini_llm.model.config import ModelConfig


class KVCache:
    """Room for `max_len` tokens of `batch_size` sequences, filled from the left by `Transformer.forward`."""

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape_LBJSK = (config.n_layers, batch_size, config.n_kv_heads, max_len, config.head_dim)
        self.keys_LBJSK = torch.zeros(shape_LBJSK, device=device, dtype=dtype)
        self.values_LBJSK = torch.zeros(shape_LBJSK, device=device, dtype=dtype)
        self.positions_BS = torch.full((batch_size, max_len), -1, device=device, dtype=torch.long)
        self.max_len = max_len
        self.length = 0  # filled slots
        self.padded = False  # whether some slots may hold padding

    def next_positions(self, n_tokens: int) -> Tensor:
        """Return the positions (B, T) that follow each sequence's last one."""
        steps_T = torch.arange(n_tokens, device=self.positions_BS.device)
        if self.length == 0:
            return steps_T.expand(self.positions_BS.shape[0], n_tokens)
        return self.positions_BS[:, self.length - 1, None] + 1 + steps_T

    def extend(self, positions_BT: Tensor) -> Tensor:
        """Take T new slots for tokens at these positions and return the positions (B, S) of all filled slots.

        Raises:
            ValueError: the cache is full.
        """
        end = self.length + positions_BT.shape[1]
        if end > self.max_len:
            raise ValueError(f"the KV cache has {self.max_len} slots, {end} are needed")
        self.positions_BS[:, self.length : end] = positions_BT
        self.length = end
        return self.positions_BS[:, :end]

    def store(self, layer: int, k_BJTK: Tensor, v_BJTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values into the slots that `extend` took; return all of that layer's."""
        end = self.length
        start = end - k_BJTK.shape[2]
        self.keys_LBJSK[layer, :, :, start:end] = k_BJTK
        self.values_LBJSK[layer, :, :, start:end] = v_BJTK
        return self.keys_LBJSK[layer, :, :, :end], self.values_LBJSK[layer, :, :, :end]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` slots; 0 makes the cache new."""
        assert 0 <= length <= self.length, f"cannot rewind {self.length} slots to {length}"
        self.length = length
        self.padded = self.padded and length > 0
