"""The model spread over processes, from outside: no line of the model knows of it.

The order is torch's: tensor parallel, activation checkpointing, compilation, shares (FSDP2) or copies (DDP); the
optimizer comes after. Whatever is done with the model is done as the forward of one module, where weights are whole.
Papers: ZeRO, arXiv 1910.02054, and FSDP, 2304.11277 (shares); 1604.06174 (activations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mini_llm.errors import UsageError
from mini_llm.model.transformer import Transformer
from mini_llm.train.config import TrainConfig
from mini_llm.train.parallel.boxes import WholeToShares
from mini_llm.train.parallel.world import World
from mini_llm.train.run.out_of_memory import RanOut, check_room, is_out_of_memory

if TYPE_CHECKING:
    from mini_llm.train.parallel.owners import Owners
    from mini_llm.train.run.kept import Kept

Result = TypeVar("Result")


class Work(nn.Module):
    """Any work on a model as a module's forward: there FSDP2 makes the weights whole, and DDP watches gradients."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[Transformer], Result]) -> Result:
        """Return `work(model)`."""
        return work(self.model)


class Spread:
    """A model in training, spread over a world: `model` holds what this process has of it, `use` computes with it."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        initialise: Callable[[Transformer], Kept | None],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Build it, with the weights that `initialise` gives."""
        self.world, self.mesh = world, world.mesh
        if self.mesh is None:
            check_room(config.model)
            self.model = Transformer(config.model)
        else:  # shares are cut from no memory at all: the whole model may be larger than this machine
            with torch.device("meta"):
                self.model = Transformer(config.model)
        self.work: nn.Module = Work(self.model)
        spread_out(self.work, config, world, device, dtype)
        if self.mesh is None:
            self.part = initialise(self.model)
            if device.type == "cpu" and all(p.requires_grad for p in self.model.parameters()):
                check_room(config.model, bytes_each=12 if config.optimizer == "muon" else 16)
            self.model.to(device)
        else:
            self.model.to_empty(device=device)
            with WholeToShares():
                self.part = initialise(self.model)
        if self.part is not None and world.size > 1:
            raise UsageError("an adapter is trained in one process so far", "leave out torchrun")
        self.model.train()
        if world.size > 1 and config.parallel.shard == "ddp":
            self.work = DistributedDataParallel(self.work)

    def use(self, work: Callable[[Transformer], Result]) -> Result:
        """Return `work(model)`; call it in all processes where weights are shared."""
        return work(self.model) if self.world.size == 1 else self.work(work)

    def look(self, work: Callable[[Transformer], Result]) -> Result | None:
        """Return what the first process finds with the model: the others only help where weights are shared."""
        if self.mesh is not None:
            return self.use(work)
        return work(self.model) if self.world.is_first else None

    def micro_batches(self, rows: Any, n_parts: int) -> Iterator[Any]:
        """Yield the rows in parts; copies of the model add up their gradients once, with those of the last part."""
        parts = rows.split(len(rows) // n_parts)
        for number, part in enumerate(parts, 1):
            self.add_up(number == len(parts))
            yield part

    def add_up(self, it_does: bool) -> None:
        """Let the next backward pass add up the gradients of all copies, or keep them for later."""
        if isinstance(self.work, DistributedDataParallel):
            self.work.require_backward_grad_sync = it_does

    def try_together(self, work: Callable[[], object]) -> None:
        """Do a micro-batch's work once before the first step; what it leaves in the gradients goes.

        Raises:
            RanOut: the memory of one process was not enough. All of them raise it, and may try again with less.
        """
        self.add_up(False)
        ran_out = False
        try:
            work()
        except (MemoryError, RuntimeError) as problem:
            if not is_out_of_memory(problem):
                raise
            ran_out = True
        self.model.zero_grad(set_to_none=True)
        if self.world.any(ran_out):
            raise RanOut

    def owners(self) -> Owners | None:
        """Return who orthogonalises which matrix: all who together have one copy of the weights; alone, nobody asks."""
        if self.world.size == 1:
            return None
        from mini_llm.train.parallel.owners import Owners

        group = None
        if self.mesh is not None and "copies" in (self.mesh.mesh_dim_names or ()) and self.mesh.size(0) > 1:
            group, _ = dist.new_subgroups(self.world.size // self.mesh.size(0))
        return Owners(group)

    def loss_from_shares(self) -> AbstractContextManager[None]:
        """Return what loss and gradient are computed in."""
        if self.world.tensor == 1:
            return nullcontext()
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel()


def spread_out(work: nn.Module, config: TrainConfig, world: World, device: torch.device, dtype: torch.dtype) -> None:
    """Spread the model of `work` over the world, as the settings say; copies are made later, of whole weights.

    What only several processes need is imported here: it takes a second.
    """
    model, parallel, mesh = work.model, config.parallel, world.mesh
    assert isinstance(model, Transformer)
    if mesh is not None and world.tensor > 1:
        from mini_llm.train.parallel.tensor import share_products

        share_products(model, mesh["tensor"])
    if parallel.checkpoint_activations:
        keep_entrances_alone(model)
    if mesh is not None and parallel.shard in ("full", "hybrid"):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # On a GPU weights travel in 16 bits, and gradients are added up in 32; the shares themselves stay float32.
        low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        how: dict[str, Any] = {"mp_policy": low} if device.type == "cuda" and dtype != torch.float32 else {}
        how["mesh"] = mesh["copies", "shares"] if parallel.shard == "hybrid" else mesh["shares"]
        for block in model.model.layers:
            fully_shard(block, **how)
        fully_shard(work, **how)


def keep_entrances_alone(model: Transformer) -> None:
    """Let each block keep its input alone; going back it is computed again. The same bits, and a third more work."""
    for block in model.model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
