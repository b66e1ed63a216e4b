"""Out of memory: recognise it, name the settings that need less, and with `auto_batch` take them.

Half the rows in memory at once, twice as many micro-batches: the step sees the same rows and sums the same gradients.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from mini_llm import log, ranks
from mini_llm.config import dump_config
from mini_llm.device import give_back_freed_memory
from mini_llm.errors import UserError
from mini_llm.files import write_text
from mini_llm.memory import cpu_memory
from mini_llm.model.accounting import count_parameters
from mini_llm.model.config import ModelConfig
from mini_llm.train.config import TrainConfig

Result = TypeVar("Result")


class RanOut(MemoryError):
    """Memory was not enough in one of several processes, and all of them know it."""


def fit_memory(config: TrainConfig, attempt: Callable[[TrainConfig], Result]) -> Result:
    """Return `attempt(config)`; where memory runs out and `auto_batch` is set, try again with smaller micro-batches.

    Raises:
        UserError: out of memory; the hint names the settings that need less.
    """
    while True:
        try:
            return attempt(config)
        except (MemoryError, RuntimeError) as problem:
            if not is_out_of_memory(problem):
                raise
            everywhere = ranks.world_size() == 1 or isinstance(problem, RanOut)
        if (
            "torch._dynamo" in sys.modules
        ):  # what is compiled holds tensors, and each new shape counts against its limit
            torch.compiler.reset()
        gc.collect()  # the exception is gone, and now what its frames held: a message needs memory too
        give_back_freed_memory()  # a library that makes its programs as it goes asks the system for their room
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = halve_batch(config)
        message = f"out of memory with batch_size={config.batch_size} rows of block_size={config.block_size} tokens"
        if not config.auto_batch or smaller is None:
            raise UserError(message, _advice(config, smaller))
        if not everywhere:  # the others wait in the middle of a step, where nothing can be said to them
            write_text(Path(config.out_dir) / "config.yaml", dump_config(smaller))
            hint = "torchrun --max-restarts=3 starts again by itself; else give the same command again"
            raise UserError(f"{message}: from the last checkpoint on, {describe_batch(smaller)}", hint)
        log.warn(f"{message}: auto_batch goes on with {describe_batch(smaller)}")
        config = smaller


def check_room(model: ModelConfig, *, bytes_each: int = 4) -> None:
    """Refuse a model that takes more than this machine's memory, at so many bytes for each of its parameters.

    Linux gives memory that it does not have, and ends a process that uses it without a word.

    Raises:
        UserError: it does not fit, with both numbers.
    """
    needed, there = bytes_each * count_parameters(model), cpu_memory()
    if there is not None and needed > there:
        what = "its weights alone take" if bytes_each == 4 else "its weights, gradients and optimizer take"
        raise UserError(
            f"a model of {count_parameters(model):,} parameters is too large for this machine: {what} "
            f"{needed / 1e9:,.1f} GB, and {there / 1e9:,.1f} GB are there",
            "a smaller model.dim, model.n_layers or model.vocab_size needs less: mini-llm plan tells how much",
        )


def is_out_of_memory(problem: BaseException) -> bool:
    """Tell whether memory ran out: torch's OutOfMemoryError is a RuntimeError; a CPU's is only that."""
    if isinstance(problem, MemoryError):
        return True
    return isinstance(problem, RuntimeError) and bool(
        # The last is oneDNN's, which has no room for the code of a product.
        re.search("out of memory|allocate memory|bad_alloc|_STATUS_ALLOC_FAILED|not create a primitive", str(problem))
    )


def halve_batch(config: TrainConfig) -> TrainConfig | None:
    """Return the same steps and evaluations in half the memory, or less where the rows cannot be halved; None: one row.

    An evaluation goes on seeing the same rows: they are counted in batches, so there are more of those.
    """
    rows, held_out = config.rows_per_step, config.eval_iters * config.batch_size
    for batch in range(config.batch_size // 2, 0, -1):
        if rows % batch == 0 and held_out % batch == 0:
            return with_batch(config, batch)
    return None


def with_batch(config: TrainConfig, batch_size: int) -> TrainConfig:
    """Return the same steps and evaluations in micro-batches of `batch_size`, a divisor of the rows of a step."""
    update = {
        "batch_size": batch_size,
        "gradient_accumulation_steps": config.rows_per_step // batch_size,
        "eval_iters": -(-config.eval_iters * config.batch_size // batch_size),
    }
    return config.model_copy(update=update)


def describe_batch(config: TrainConfig) -> str:
    """Return the three settings as they are typed."""
    return (
        f"batch_size={config.batch_size} gradient_accumulation_steps={config.gradient_accumulation_steps} "
        f"eval_iters={config.eval_iters}"
    )


def _advice(config: TrainConfig, smaller: TrainConfig | None) -> str:
    if smaller is None:
        return (
            f"one row is too much: block_size={max(1, config.block_size // 2)}, a smaller model "
            "(model.dim, model.n_layers, model.vocab_size), or dtype=bfloat16 need less"
        )
    return f"the same step in half the room: {describe_batch(smaller)}; auto_batch=true does this by itself"
