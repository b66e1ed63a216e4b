"""Copies in host memory: what a checkpoint is written from while training goes on, the same memory each time."""

from __future__ import annotations

import torch

from mini_llm.train.parallel.boxes import whole


def to_host(
    tensors: dict[str, torch.Tensor], into: dict[str, torch.Tensor], keeps: bool = True
) -> dict[str, torch.Tensor]:
    """Copy to host memory: to the tensors of `into` where they fit, for new memory costs more than the copying.

    Shares are gathered one after the other; who does not keep the copy only helps.
    """
    copies: dict[str, torch.Tensor] = {}
    for name, value in ((name, whole(tensor)) for name, tensor in tensors.items()):
        if not keeps:
            continue
        copy = into.get(name)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        copies[name] = copy.copy_(value, non_blocking=value.is_cuda)  # on MPS nothing would wait for it
    return copies
