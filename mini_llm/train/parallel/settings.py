"""How a run is spread over the processes of `torchrun`: the settings below `parallel:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mini_llm.config import Config


class ParallelConfig(Config):
    """The section `parallel:` of a run's settings; with one process nothing but `checkpoint_activations` counts."""

    # none: every process of a tensor group has it all; ddp: copies of the model; full: each keeps a share of weights,
    # gradients and optimizer state; hybrid: shares within a machine, copies of the whole between machines
    shard: Literal["none", "ddp", "full", "hybrid"] = "none"
    tensor: int = Field(default=1, ge=1, le=1024)  # neighbours, on one machine, that share each matrix product
    checkpoint_activations: bool = False  # keep each block's input alone, and compute the block again going back
    gather_up_to: int = Field(default=3_000_000_000, ge=0, le=10**15)  # parameters; above, each saves its share
