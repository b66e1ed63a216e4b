"""The proof of a plan: the spread model is built here as one of N processes has it, counted, and a step is traced.

torch's "fake" backend stands for the other processes: whoever exchanges with them gets a tensor of the right shape at
once. Weights are built on "meta" and become fake tensors, which have shapes and no numbers, so 80 billion parameters
over 1,024 GPUs need a few hundred megabytes. The trainer's own code spreads the model and updates it. What kernels and
connections need, and how fast they are, it does not tell.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mini_llm.errors import UsageError
from mini_llm.model.transformer import Transformer
from mini_llm.plan.machines import GPUS_A_MACHINE
from mini_llm.plan.memory import Scenario, predict_memory
from mini_llm.train.config import TrainConfig
from mini_llm.train.loss import rows_loss_sum
from mini_llm.train.optim.optimizer import build_optimizers
from mini_llm.train.parallel.boxes import box_of, is_share, local, whole
from mini_llm.train.parallel.spread import check_spread, make_mesh
from mini_llm.train.parallel.world import World
from mini_llm.train.parallel.wrap import Work, spread_out

TOKENS = 64  # of the row that is traced: longer ones change no share
CLOSE = 0.01  # of the plan's number, which takes all for evenly divided; norms are whole in a tensor group


@dataclass(frozen=True)
class Proof:
    """Bytes of one process: counted (the first one's), the plan's, and the weights of whoever has most and least."""

    processes: int
    counted: dict[str, int]
    planned: dict[str, int]
    most_weights: int
    least_weights: int
    whole: bool  # all shares together are the whole model

    @property
    def holds(self) -> bool:
        """Tell whether each number is the plan's, to `CLOSE`, and no weight is missing."""
        close = (abs(self.counted[part] - bytes_) <= CLOSE * bytes_ for part, bytes_ in self.planned.items())
        return self.whole and all(close)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "holds": self.holds}


def prove(config: TrainConfig, gpus: int) -> Proof:
    """Build the model as one of `gpus` processes has it, trace a whole step, and count.

    Raises:
        UsageError: settings that cannot be spread so; one process, which has nothing to share.
    """
    if gpus < 2:
        raise UsageError("--prove counts what each of several processes holds", "say how many: --gpus 8")
    config = config.model_copy(update={"compile": False, "device": "cpu"})
    machine = min(GPUS_A_MACHINE, gpus)
    check_spread(config, gpus, machine)
    with _first_of(gpus):
        mesh = make_mesh(config, "cpu", gpus, machine)
        with torch.device("meta"):
            work = Work(Transformer(config.model))
        world = World(0, gpus, config.parallel.tensor, mesh)
        spread_out(work, config, world, torch.device("cpu"), torch.float32)
        with FakeTensorMode(allow_non_fake_inputs=True):
            work.to_empty(device="cpu")
            if mesh is None and config.model.tie_embeddings:  # `to_empty` parts them; FSDP2 does not
                work.model.lm_head.weight = work.model.model.embed_tokens.weight
            gradients, state = _traced_step(work, config, world)
        weights: list[Tensor] = list(work.parameters())
        counted = {"weights": sum(map(_bytes, weights)), "gradients": gradients, "optimizer": state}
        held, is_whole = _held_by_each(weights, gpus)
    assert held[0] == counted["weights"], "shares lie elsewhere than box_of says"
    sharers = {"none": config.parallel.tensor, "ddp": 1, "hybrid": machine, "full": gpus}[config.parallel.shard]
    scenario = Scenario("", shards=sharers, tensor=config.parallel.tensor)
    plan = predict_memory(config, torch.float32, scenario, on_cpu=False).as_dict()
    return Proof(gpus, counted, {part: plan[part] for part in counted}, max(held), min(held), is_whole)


@contextmanager
def _first_of(size: int) -> Iterator[None]:
    """Be process 0 of so many, of which the others do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    logger = logging.getLogger("torch.distributed.tensor")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of each exchange over two axes
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        logger.setLevel(level)


def _traced_step(work: Work, config: TrainConfig, world: World) -> tuple[int, int]:
    """Do a step of one row as the trainer does; return the bytes of gradients and of the optimizers' state.

    Muon's exchange is left out: it asks who has which share, which tensors without numbers cannot tell.
    """
    from torch.distributed.tensor.parallel import loss_parallel

    optimizers = build_optimizers(work.model, config, lambda _like, updates, _orthogonalise: updates)
    rows = torch.zeros(1, TOKENS + 1, dtype=torch.long)
    with loss_parallel() if world.tensor > 1 else nullcontext():
        loss = whole(work(lambda model: rows_loss_sum(model, rows, torch.float32)))
        (loss / TOKENS).backward()
    torch.nn.utils.clip_grad_norm_(work.parameters(), config.grad_clip or math.inf)
    gradients = sum(_bytes(p.grad) for p in work.parameters() if p.grad is not None)
    for optimizer in optimizers:
        optimizer.step()
    states = [t for o in optimizers for state in o.state.values() for t in state.values() if isinstance(t, Tensor)]
    return gradients, sum(map(_bytes, states))


def _bytes(tensor: Tensor) -> int:
    return local(tensor).nbytes


def _held_by_each(weights: list[Tensor], size: int) -> tuple[list[int], bool]:
    """Return each process's bytes of weights, and whether every weight is in shares that make up the whole of it."""
    alike = Counter((tuple(w.shape), w.placements if is_share(w) else ()) for w in weights)
    held, is_whole = [0] * size, True
    for weight in weights:
        count = alike.pop((tuple(weight.shape), weight.placements if is_share(weight) else ()), 0)
        if not count:
            continue
        axes = weight.device_mesh.shape if is_share(weight) else (size,)
        boxes = [box_of(weight, place) for place in product(*map(range, axes))]
        sharers = size // len(boxes) if is_share(weight) else 1
        for rank in range(size):
            held[rank] += count * weight.element_size() * math.prod(boxes[rank // sharers].size)
        different = {box.offset: math.prod(box.size) for box in boxes if math.prod(box.size)}
        is_whole &= sum(different.values()) == weight.numel()
    return held, is_whole
