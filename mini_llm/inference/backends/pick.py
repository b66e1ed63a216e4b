"""Which way to compute a step: compiled C on a CPU, captured graphs on CUDA, plain PyTorch everywhere else."""

from __future__ import annotations

import torch

from mini_llm import log
from mini_llm.errors import UsageError, UserError
from mini_llm.inference.backends.compiled import KINDS, CompiledBackend, quantize
from mini_llm.inference.backends.cuda_graphs import CudaGraphsBackend
from mini_llm.inference.backends.eager import Backend, EagerBackend
from mini_llm.inference.backends.native import NoCompiler
from mini_llm.model.transformer import Transformer

NAMES = ("auto", "eager", "compiled", "cuda-graphs")


def pick_backend(name: str, model: Transformer, *, vocab_size: int, int8: bool = False) -> Backend:
    """Return the backend of that name for `model`; auto takes the fastest that works here.

    Raises:
        UsageError: no such backend, or not for this device or dtype.
        UserError: `compiled` was asked for and there is no C compiler.
    """
    if name not in NAMES:
        raise UsageError(f"backend '{name}' is not one of {', '.join(NAMES)}")
    weight = model.lm_head.weight
    compilable = weight.device.type == "cpu" and weight.dtype in KINDS
    if name == "compiled" and not compilable:
        found = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
        raise UsageError(f"the compiled backend takes float32, bfloat16 or int8 on a CPU, not {found}")
    if compilable and name in ("auto", "compiled"):
        try:
            return CompiledBackend(model, int8=int8)
        except NoCompiler as problem:
            if name == "compiled":
                raise UserError(f"the compiled backend does not work: {problem}", "use --backend eager") from None
            log.warn(f"texts are computed by plain PyTorch, slower: {problem}")
    if int8:
        round_weights(model)
    if name == "cuda-graphs" and weight.device.type != "cuda":
        raise UsageError(f"the backend cuda-graphs needs an NVIDIA GPU, the model is on {weight.device}")
    if weight.device.type == "cuda" and name != "eager":
        return CudaGraphsBackend(model, vocab_size)
    return EagerBackend(model)


@torch.no_grad()
def round_weights(model: Transformer) -> None:
    """Give every matrix the values that int8 has for it: the text of int8, without its speed."""
    for weight in model.parameters():
        if weight.ndim == 2:
            rounded, scale = quantize(weight)
            weight.copy_(rounded * scale[:, None])
