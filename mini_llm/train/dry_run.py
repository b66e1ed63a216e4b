"""The dry run: everything is built, one step is done at full size, and nothing is written.

It finds what would end a run after hours (a missing file, too little memory, a full disk) and says how long it takes.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from mini_llm import log
from mini_llm.device import forget_peak_memory, memory_gb, pick_device
from mini_llm.pointers import list_checkpoints
from mini_llm.train.config import TrainConfig
from mini_llm.train.objective import Pretraining
from mini_llm.train.parallel.boxes import local
from mini_llm.train.parallel.spread import keeps_shares
from mini_llm.train.parallel.world import World, start_world
from mini_llm.train.run.display import duration
from mini_llm.train.run.kept import parameters_in_words
from mini_llm.train.run.milestones import milestone_steps
from mini_llm.train.run.out_of_memory import describe_batch, fit_memory
from mini_llm.train.run.resume import Snapshot, optimizer_tensors
from mini_llm.train.run.run_folder import check_run, keep_batch
from mini_llm.train.step import Stepper
from mini_llm.train.train import MakeObjective
from mini_llm.units import size

Result = TypeVar("Result")

MORE_STEPS = 2  # after the first one, where they take less than
MORE_SECONDS = 10.0


@dataclass(frozen=True)
class Measured:
    """What the trial found: seconds, bytes, and the settings that fitted."""

    config: TrainConfig
    model: str  # what is trained and where, in words
    loss: float
    tokens: int  # of the step
    step_seconds: float
    batch_seconds: float  # of an evaluation
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved_bytes: int  # of a checkpoint
    peak_gb: float
    held_out_batches: int


def dry_run(config: TrainConfig, make_objective: MakeObjective = Pretraining) -> str:
    """Return a report of what `train(config)` would take.

    Raises:
        UserError: what `train` would raise before its second step, out of memory among it; but no checkpoint is read.
    """
    check_run(config)
    first = keep_batch(config)
    with start_world(first) as world:
        return report(fit_memory(first, lambda fitting: _measure(fitting, make_objective, world)))


def _measure(config: TrainConfig, make_objective: MakeObjective, world: World) -> Measured:
    log.info("dry run: building everything and doing one step at full size (compiling takes up to a minute) ...")
    forget_peak_memory(pick_device(config.device))  # of an attempt that found too little
    full = config.model_copy(update={"length_warmup": 0.0})  # full rows take the most memory
    objective = world.checked(make_objective(full))
    objective.verify()
    objective.tokenizer  # noqa: B018  # refused where it is not the data's
    stepper, evaluator = Stepper(full, objective, world), objective.evaluator
    stepper.compile()
    result, seconds = _timed(stepper.step, stepper.device)
    if not world.any(seconds * MORE_STEPS >= MORE_SECONDS):  # the first one also makes the optimizer's memory
        seconds = min(_timed(stepper.step, stepper.device)[1] for _ in range(MORE_STEPS))
    evaluate = partial(evaluator.run, stepper.evaluation_loss_sum, stepper.device, most_batches=1)
    batch_seconds = min(_timed(evaluate, stepper.device)[1] for _ in range(2))
    peak = memory_gb(stepper.device)
    snapshot = Snapshot.of(stepper.trainee, gathered=world.size == 1 or not keeps_shares(config))
    model, optimizer = stepper.trainee.model, optimizer_tensors(stepper.trainee).values()
    each = f" in each of {world.size} processes" if world.size > 1 else ""
    where = f"{stepper.device.type}{each}, {str(stepper.dtype).removeprefix('torch.')}"
    return Measured(
        config,
        f"{parameters_in_words(model)} on {where}",
        result.loss,
        result.tokens,
        seconds,
        batch_seconds,
        weight_bytes=sum(local(t).nbytes for t in (*model.parameters(), *model.buffers())),
        gradient_bytes=sum(4 * local(p).numel() for p in model.parameters() if p.requires_grad),
        optimizer_bytes=sum(local(t).nbytes for t in optimizer),
        saved_bytes=int(world.agree(0.0, snapshot.n_bytes)[1]),
        peak_gb=peak,
        held_out_batches=evaluator.n_batches,
    )


def _timed(do: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    start = time.perf_counter()
    result = do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start


def report(m: Measured) -> str:
    """Return the measurements, and what follows from them, as lines of text."""
    c = m.config
    run = Path(c.out_dir)
    first = max((step for step, _ in list_checkpoints(run)), default=0) if c.resume else 0
    steps = max(0, c.max_iters - first)
    evaluations, saves = count_looks(c, first)
    evaluating, training = evaluations * m.held_out_batches * m.batch_seconds, steps * m.step_seconds
    rest = m.peak_gb * 1e9 - m.weight_bytes - m.gradient_bytes - m.optimizer_bytes
    lines = {
        "model": m.model,
        "step": f"{m.step_seconds:.3g} s for {m.tokens:,} tokens, {m.tokens / m.step_seconds:,.0f} "
        f"tokens/s; {describe_batch(c)}",
        "first loss": f"{m.loss:.4f}",
        "memory": f"{size(m.peak_gb * 1e9)} at the peak: weights {size(m.weight_bytes)}, gradients "
        f"{size(m.gradient_bytes)}, optimizer {size(m.optimizer_bytes)}, activations and all else {size(rest)}"
        + (f"; saving takes {size(m.saved_bytes)} of host memory besides" if c.async_save else ""),
        "duration": f"{duration(training + evaluating)}: {steps:,} steps {duration(training)}, "
        f"{evaluations:,} evaluations {duration(evaluating)}"
        + (f" (from step {first:,} on)" if first else "")
        + (
            f"; {'cut to fit into' if c.fit_minutes else 'stops every'} {c.max_minutes:g} minutes"
            if c.max_minutes
            else ""
        ),
        "checkpoints": f"{saves:,} of {size(m.saved_bytes)}, of which at most {c.keep_last + 1} stay"
        + (" (and one of each evaluation)" if c.always_save_checkpoint else ""),
    }
    needed = (c.keep_last + 2) * m.saved_bytes  # one more while it is being written
    if c.milestones:
        n, each = len(milestone_steps(c.max_iters)), m.weight_bytes // 2  # bfloat16
        lines["milestones"] = f"{n} of {size(each)}, all of which stay"
        needed += n * each
    _check_disk(run, needed)
    return "\n".join(f"{name:<12} {text}" for name, text in lines.items())


def count_looks(config: TrainConfig, first: int) -> tuple[int, int]:
    """Return how many evaluations and checkpoints there are from step `first` on; one at `first` is there already."""
    last, by_eval, by_save = config.max_iters, config.eval_interval, config.save_interval

    def multiples(n: int, start: int) -> int:  # start <= step < last
        return max(0, -(-last // n) - -(-start // n))

    evaluations = multiples(by_eval, first)
    saves = sum(multiples(n, first + 1) for n in (by_eval, by_save)) - multiples(math.lcm(by_eval, by_save), first + 1)
    return evaluations + (last >= first), saves + (last > first)


def _check_disk(run: Path, needed: float) -> None:
    folder = next(parent for parent in (run.absolute(), *run.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        log.warn(f"{folder} has {size(free)} free, the checkpoints need about {size(needed)}: keep_last=1 needs less")
