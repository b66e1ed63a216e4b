"""The world: the processes that train together, what each of them sees, and the one vector on which they agree.

One process is a world of one: nothing is sent, nothing is different. Processes that share matrix products (`tensor`)
are neighbours and see the same rows; the rows of a step are dealt out among such groups, so that they are the same for
every size of the world. Each step all processes add up one vector, of the loss and of what each of them wants (stop,
save), and so they stop, save and fail at the same step.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from mini_llm import ranks
from mini_llm.device import pick_device
from mini_llm.errors import UsageError, UserError
from mini_llm.train.config import TrainConfig
from mini_llm.train.parallel.spread import check_spread, make_mesh

Value = TypeVar("Value")

# Compiling, and work of the first process alone (samples, tasks) while the others wait, must fit into it.
PATIENCE = timedelta(minutes=30)
LOST = ("Connection closed", "onnection reset", "gloo/transport", "Broken pipe", "NCCL", "process group", "DistStore")


class World:
    """Process `rank` of `size`, of which `tensor` neighbours share each matrix product."""

    def __init__(self, rank: int = 0, size: int = 1, tensor: int = 1, mesh: DeviceMesh | None = None) -> None:
        self.rank, self.size, self.tensor, self.mesh = rank, size, tensor, mesh
        self.data_rank, self.data_size = rank // tensor, size // tensor
        self.token = secrets.token_hex(4)  # of this try, alike in all processes: names their temporary folders

    @property
    def is_first(self) -> bool:
        """Tell whether this process writes, shows and decides."""
        return self.rank == 0

    def checked(self, objective: Value) -> Value:
        """Return the objective.

        Raises:
            UsageError: it makes the rows of a step in a way that cannot be dealt out to several processes.
        """
        if self.size > 1 and not getattr(objective, "deals_out_rows", False):
            raise UsageError(f"{type(objective).__name__.lower()} trains in one process so far", "leave out torchrun")
        return objective

    def own(self, rows: Any) -> Any:
        """Return this process's rows of a whole step: an equal share, the same for all of a tensor group."""
        return rows.split(len(rows) // self.data_size)[self.data_rank] if self.data_size > 1 else rows

    def n_micro_batches(self, config: TrainConfig, n_rows: int) -> int:
        """Return in how many parts this process takes its share of a step's rows: of `batch_size` rows at most each."""
        if self.data_size == 1:
            return config.micro_batches(n_rows)
        rows = config.rows_per_step // self.data_size  # `length_warmup` makes more of them, and shorter ones
        return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= config.batch_size)

    def micro_batch(self, config: TrainConfig, example: Any) -> Any:
        """Return what one such part is like, of an example of `batch_size` rows."""
        if self.data_size == 1:
            return example
        rows = config.rows_per_step // self.data_size
        return example.split(rows // self.n_micro_batches(config, config.rows_per_step))[0]

    def agree(self, loss: float, *signs: float) -> list[float]:
        """Return [loss, *signs] added up over all processes: the one exchange of a step; of one process, its own."""
        if self.size == 1:
            return [loss, *signs]
        vector = torch.tensor([loss / self.tensor, *signs], dtype=torch.float64)
        dist.all_reduce(vector)
        return [float(value) for value in vector]

    def any(self, it_is: bool) -> bool:
        """Tell whether it is so in any process."""
        return self.agree(0.0, float(it_is))[1] > 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.agree(0.0)

    @contextmanager
    def led(self, context: AbstractContextManager[Value], otherwise: Value) -> Iterator[Value]:
        """Enter `context` in the first process; the others wait until it has, and get `otherwise`."""
        if not self.is_first:
            self.barrier()
            yield otherwise
            return
        with context as value:
            self.barrier()
            yield value

    def sum_of_parts(self, loss_sum: Callable[[Any], Tensor], rows: Any) -> Tensor:
        """Return `loss_sum(rows)` where each process computes the loss of its part of the rows; call it in all."""
        parts = rows.split(-(-len(rows) // self.data_size))
        has_one = self.data_rank < len(parts)  # the others keep step with the first rows, which then do not count
        part = loss_sum(parts[self.data_rank if has_one else 0]).detach() * has_one
        return torch.tensor(self.agree(part.item())[0], dtype=torch.float64)


@contextmanager
def start_world(config: TrainConfig) -> Iterator[World]:
    """Yield the world that `torchrun` has made, connected; without it, a world of one.

    Raises:
        UsageError: settings that cannot be spread over so many processes.
        UserError: too few GPUs on this machine, or another process has ended.
    """
    if (size := ranks.world_size()) == 1:
        yield World()
        return
    check_spread(config, size, ranks.local_size())
    device = pick_device(config.device)
    if device.type == "cuda":
        if ranks.local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"process {ranks.local_rank()} of this machine has no GPU: there are {torch.cuda.device_count()}",
                f"torchrun --nproc_per_node={torch.cuda.device_count()}",
            )
        torch.cuda.set_device(ranks.local_rank())
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # it warns of each exchange over two axes
    # The vector of each step goes over gloo also where there are GPUs: it needs no place in NCCL's order of calls.
    with _told_when_alone():
        _connect("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield _connected(config, device.type)
    # After an error no leave is taken of the others: whoever waits in a collective is ended by torchrun.
    dist.destroy_process_group()


def _connect(backend: str) -> None:
    """Meet the others. A torchrun keeps one store for all its starts, with the addresses of those who have died.

    Torch 2.13 takes the keys as they are, and would wait for the dead: here each start has keys of its own. Several
    torchruns each count their own starts; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives a new store.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    if ranks.local_size() == size:
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


def _connected(config: TrainConfig, device_type: str) -> World:
    rank, size, tensor = dist.get_rank(), dist.get_world_size(), config.parallel.tensor
    world = World(rank, size, tensor, make_mesh(config, device_type, size, ranks.local_size()))
    token = torch.tensor([int(world.token, 16)])
    dist.broadcast(token, src=0)
    world.token = f"{int(token):08x}"
    return world


@contextmanager
def _told_when_alone() -> Iterator[None]:
    """Turn the errors of a connection that broke into a message: the process that failed says why."""
    try:
        yield
    except (RuntimeError, dist.DistError) as problem:
        if not any(word in str(problem) for word in LOST):
            raise
        raise UserError(
            f"process {ranks.rank()} has lost the others of this run ({str(problem).splitlines()[0][:160]})",
            "all work up to the last checkpoint is safe: the same command goes on from there",
        ) from None
