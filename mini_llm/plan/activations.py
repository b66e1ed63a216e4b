"""What the forward pass keeps for the backward pass: counted on the real model, without its memory.

Fake tensors have shapes and no numbers. Run on them, one and two blocks tell what a block keeps and what the rest does,
for any size in a second, and the count follows every change of the model. Letters: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mini_llm.model.accounting import count_block_matrices
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.train.loss import rows_loss_sum

# glibc takes blocks up to this size from its heap, which keeps them when they are freed; larger ones go back at once.
HEAP_BLOCK = 32 * 2**20


@dataclass(frozen=True)
class Saved:
    """Bytes that autograd keeps, and how many of them lie in blocks that a C heap holds on to."""

    bytes: int
    heap_bytes: int

    def scaled(self, factor: float) -> Saved:
        """Return this many times as much."""
        return Saved(int(self.bytes * factor), int(self.heap_bytes * factor))


def saved_by_autograd(config: ModelConfig, batch_size: int, block_size: int, dtype: torch.dtype) -> list[int]:
    """Return the size in bytes of each storage that autograd keeps for the loss of B rows, parameters left out.

    Uncompiled, as PyTorch runs the model on a CPU. The vocabulary has one token here: what the loss head keeps is
    another matter, see memory.py.
    """
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive until the count is done, so that no storage's number is used twice

    with FakeTensorMode():
        model = Transformer(config.model_copy(update={"vocab_size": 1}))
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        rows = torch.zeros(batch_size, block_size + 1, dtype=torch.long)

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            kept.append(x)
            if storage._cdata not in own:
                sizes[storage._cdata] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            rows_loss_sum(model, rows, dtype)
    return list(sizes.values())


def eager_activations(config: ModelConfig, batch_size: int, block_size: int, dtype: torch.dtype) -> tuple[Saved, Saved]:
    """Return what one block keeps and what all around the blocks keeps, without autocast's copies of weights."""
    one, two = (
        saved_by_autograd(config.model_copy(update={"n_layers": n}), batch_size, block_size, dtype) for n in (1, 2)
    )
    copies = 2 * count_block_matrices(config.model_copy(update={"n_layers": 1})) if dtype != torch.float32 else 0
    block = _total(two).bytes - _total(one).bytes
    block_heap = _total(two).heap_bytes - _total(one).heap_bytes
    rest = Saved(max(0, _total(one).bytes - block), max(0, _total(one).heap_bytes - block_heap))
    return Saved(max(0, block - copies), max(0, block_heap - copies)), rest


def _total(sizes: list[int]) -> Saved:
    return Saved(sum(sizes), sum(size for size in sizes if size < HEAP_BLOCK))
