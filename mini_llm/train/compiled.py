"""The loss as one compiled function where torch.compile works, and as it is where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.model.transformer import Transformer
from mini_llm.train.run.out_of_memory import is_out_of_memory

LossSum = Callable[[Any], Tensor]


def build_loss_sum(loss_sum: LossSum, model: Transformer, example_rows: Any, *, compile: bool) -> LossSum:
    """Return `loss_sum` (rows -> summed loss), compiled together with the model if that works on this machine.

    It is tried on `example_rows`, forward and backward, because a missing C++ compiler or GPU kernel shows only there.
    """
    if not compile:
        return loss_sum
    keep_traces()
    compiled = torch.compile(loss_sum, dynamic=False)
    try:
        compiled(example_rows).backward()
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        log.warn(f"torch.compile does not work here, training goes on without it, slower ({reason[:200]})")
        return loss_sum
    finally:
        model.zero_grad(set_to_none=True)
    return compiled


def keep_traces() -> None:
    """Let torch keep forward and backward on the disk as it has derived them, not only their kernels.

    It does so only with functions that it knows; autocast's two, part of every step, are none of them. What they do is
    in their arguments, and those are in the key.
    """
    import torch._inductor.config as config

    names = ("torch.amp.autocast_mode._enter_autocast", "torch.amp.autocast_mode._exit_autocast")
    config.unsafe_marked_cacheable_functions |= dict.fromkeys(names, torch.__version__)
