"""The loss compiled where torch.compile works, and as it is where it does not: on a CPU block by block, on a GPU whole.

All blocks of a model are alike, so the code that is made for the first one serves all, and the first step of sixteen
comes as soon as that of one. What is around them (embedding, last norm, head) is mostly products on a CPU, which no
compiler makes faster: steps of 4 layers take 1 to 3 % longer, of 16 no longer. On a GPU the host starts what one graph
holds in less time than what many do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mini_llm import log
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.train.run.out_of_memory import is_out_of_memory

LossSum = Callable[[Any], Tensor]

BY_BLOCK = {"cpu"}  # kinds of devices; a benchmark changes it to compare
MOST_KEPT = 16_384  # numbers of a token, in all blocks together
MOST_FORMS = 64  # of a block in one process: shapes, with and without gradients, in each model; torch's own limit is 8


def build_loss_sum(loss_sum: LossSum, model: Transformer, example_rows: Any, *, compile: bool) -> LossSum:
    """Return `loss_sum` (rows -> summed loss), compiled together with the model if that works on this machine.

    It is tried on `example_rows`, forward and backward, because a missing C++ compiler or GPU kernel shows only there.
    """
    if not compile:
        return loss_sum
    keep_traces()
    by_block = model.lm_head.weight.device.type in BY_BLOCK
    compiled = with_compiled_blocks(loss_sum, model) if by_block else torch.compile(loss_sum, dynamic=False)
    try:
        compiled(example_rows).backward()
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        _warn(problem)
        return loss_sum
    finally:
        model.zero_grad(set_to_none=True)
    return compiled


def with_compiled_blocks(loss_sum: LossSum, model: Transformer) -> LossSum:
    """Return `loss_sum` that runs with each block of `model` compiled alone.

    And without when it is done: what is sampled between two steps comes in a new shape with each token.
    """
    torch._dynamo.config.recompile_limit = max(MOST_FORMS, torch._dynamo.config.recompile_limit)
    blocks, allowed = list(model.model.layers), recomputes(model.config)
    compiled = [torch.compile(block.forward, dynamic=False) for block in blocks]

    def run(rows: Any) -> Tensor:
        with _forwards(blocks, compiled), _recomputing(allowed):
            return loss_sum(rows)

    return run


def recomputes(config: ModelConfig) -> bool:
    """Tell whether blocks on a CPU compute again what products read: both normalised inputs, and gate times up.

    torch would keep them. At 16 x 384 in float32 they are a tenth of a step's memory, for which 2 % of its speed is
    given; at 4 x 192 it were 3 % for next to no memory.
    """
    return config.n_layers * (2 * config.dim + config.hidden_dim) > MOST_KEPT


def _recomputing(allowed: bool) -> AbstractContextManager[None]:
    import torch._functorch.config as config

    return cast(AbstractContextManager[None], config.patch(ban_recompute_materialized_backward=not allowed))


@contextmanager
def _forwards(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    before = [vars(module).get("forward") for module in modules]  # not the class's own: activations are recomputed
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own


def compiles(device: torch.device, tensor: int) -> bool:
    """Tell whether torch.compile works here, by a function of one line; processes that wait for each other ask.

    It does not where `tensor` of them share each product: compiled blocks give a plain gradient back where torch
    2.13's DTensor waits for one of shares.
    """
    if tensor > 1:
        log.note("parallel.tensor: torch.compile is left out, it does not know products that are shared")
        return False
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as problem:
        _warn(problem)
        return False
    return True


def _warn(problem: Exception) -> None:
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    log.warn(f"torch.compile does not work here, training goes on without it, slower ({reason[:200]})")


def keep_traces() -> None:
    """Let torch keep forward and backward on the disk as it has derived them, not only their kernels.

    It does so only with functions that it knows; autocast's two, part of every step, are none of them. What they do is
    in their arguments, and those are in the key.
    """
    import torch._inductor.config as config

    names = ("torch.amp.autocast_mode._enter_autocast", "torch.amp.autocast_mode._exit_autocast")
    config.unsafe_marked_cacheable_functions |= dict.fromkeys(names, torch.__version__)
