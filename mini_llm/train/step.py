"""One step: sum the gradients of all micro-batches, shorten the sum, update every weight.

The loss is a sum over tokens, divided once by the number of tokens of the whole step: more and smaller micro-batches
change nothing but memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mini_llm.device import attention_kernels, pick_device, pick_dtype, reuse_freed_memory, use_fast_products
from mini_llm.train.compiled import build_loss_sum, compiles, with_compiled_blocks
from mini_llm.train.config import TrainConfig
from mini_llm.train.head_room import fit_head
from mini_llm.train.objective import Objective, Pretraining, Rows
from mini_llm.train.optim.average import WeightAverage
from mini_llm.train.optim.lr_scheduler import learning_rate
from mini_llm.train.optim.optimizer import build_optimizers
from mini_llm.train.optim.spikes import find_spike
from mini_llm.train.parallel.boxes import whole
from mini_llm.train.parallel.world import World
from mini_llm.train.parallel.wrap import Spread
from mini_llm.train.run.resume import Progress, Trainee


class NotFinite(Exception):
    """The loss or the gradient became NaN or infinite; the weights are those of before the step."""


@dataclass(frozen=True)
class StepResult:
    """What a step shows: loss in nats per token, learning rate, and the gradient's length before it was shortened."""

    loss: float
    lr: float
    grad_norm: float
    tokens: int  # of its rows
    skipped: str | None = None  # why the weights are those of before
    more: dict[str, float] = field(default_factory=dict)  # what else the objective has to show


class Stepper:
    """A model in training with its optimizers and its batches."""

    def __init__(self, config: TrainConfig, objective: Objective | None = None, world: World | None = None) -> None:
        """Build a new model, at step 0, for `objective`: without one, for pretraining on `config.data_dir`.

        Raises:
            UserError: the tokens cannot be read or are too few.
            UsageError: a device or dtype that this machine lacks.
        """
        self.config, self.world = config, world or World()
        if config.deterministic:
            use_deterministic_arithmetic()
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        if self.device.type == "cpu":
            reuse_freed_memory()
            use_fast_products()
        fit_head(self.device)
        self.objective: Objective = objective or Pretraining(config)
        self.ahead: tuple[int, Rows] | None = None
        self.n_tokens = 0  # of the last step
        self.before_batch: Callable[[], None] = lambda: None  # may raise: the step is given up, nothing has changed
        self.wants: Callable[[], tuple[float, ...]] = lambda: ()  # what this process would like all to do next
        self.heard: list[float] = []  # and what all of them would, added up
        self.spread = Spread(config, self.world, self.objective.initialise, self.device, self.dtype)
        model, hashes = self.spread.model, self.objective.fingerprints
        optimizers = build_optimizers(model, config, self.spread.owners())
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.trainee = Trainee(model, optimizers, scaler, Progress(), hashes, self.spread.part, self.world)
        self.average = WeightAverage(self.trainee.optimizers, config.weight_average)

    def compile(self) -> None:
        """Compile loss and gradient, trying them on a first micro-batch; called once before the first step."""
        config, model, plain = self.config, self.trainee.model, self._plain_loss_sum
        example = self.world.micro_batch(config, self.objective.example()).to(self.device)
        with self._kernels():
            if self.world.size == 1:
                self.loss_sum = build_loss_sum(plain, model, example, compile=config.compile)
                return
            compiled = config.compile and compiles(self.device, self.world.tensor)
            self.loss_sum = with_compiled_blocks(plain, model) if compiled else plain
            self.spread.try_together(lambda: self.loss_sum(example).backward())

    def _plain_loss_sum(self, rows: Any) -> Tensor:
        return whole(self.spread.use(lambda model: self.objective.loss_sum(model, rows, self.dtype)))

    def step(self) -> StepResult:
        """Do the next step.

        Raises:
            NotFinite: before anything was changed.
        """
        config, trainee, step = self.config, self.trainee, self.trainee.progress.step
        lr = learning_rate(step, config)
        # Dropout is a function of (seed, step) too, and of who sees the rows.
        torch.manual_seed(config.seed * 1_000_003 + step + self.world.data_rank * 2**53)
        loss_1 = self._backward(step)
        for optimizer in trainee.optimizers:
            trainee.scaler.unscale_(optimizer)
        norm_1 = whole(torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), config.grad_clip or math.inf))
        loss, norm = torch.stack([loss_1, norm_1]).tolist()  # the step's one wait for a GPU
        loss, *self.heard = self.world.agree(loss, *self.wants())
        skipped = self._find_spike(loss, norm)
        if skipped is None:
            self._check_finite(loss, norm)
        # Otherwise one optimizer would step and the other, where float16 overflowed, would not.
        applies = skipped is None and math.isfinite(norm)
        for optimizer in trainee.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (lr / config.learning_rate if config.learning_rate else 0.0)
            if applies:
                trainee.scaler.step(optimizer)
        trainee.scaler.update()
        trainee.model.zero_grad(set_to_none=True)
        trainee.progress.step += 1
        trainee.progress.tokens_seen += self.n_tokens
        trainee.progress.epochs_seen = self.objective.epoch(trainee.progress.step)
        self.average.update(trainee.progress.step)
        return StepResult(loss, lr, norm, self.n_tokens, skipped, self.objective.noted(trainee.progress.step))

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        """Choose the kernels of loss and gradient; a rule that only warns does not make CUDA's attention repeat."""
        deterministic = self.config.deterministic
        with attention_kernels(self.device, deterministic=deterministic), self.spread.loss_from_shares():
            if deterministic:
                torch.use_deterministic_algorithms(True, warn_only=False)
            try:
                yield
            finally:
                if deterministic:  # sampling, between the steps, uses sums that CUDA refuses under the strict rule
                    torch.use_deterministic_algorithms(True, warn_only=True)

    def _backward(self, step: int) -> Tensor:
        """Add up the gradients of the mean loss over all targets of a step; return its own rows' part of that loss."""
        with torch.profiler.record_function("mini_llm: batch"):
            rows = self.ahead[1] if self.ahead and self.ahead[0] == step else self.objective.rows(step)
        n_targets, self.n_tokens = self.objective.targets(rows), self.objective.tokens(rows)
        rows, n_parts = self.world.own(rows), self.world.n_micro_batches(self.config, len(rows))
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(self.device, non_blocking=True)
        total = torch.zeros((), device=self.device)
        mean = n_targets / self.world.data_size  # DDP and FSDP2 divide by their number what they add up
        with self._kernels():
            for micro_batch in self.spread.micro_batches(rows, n_parts):
                self.before_batch()
                loss = self.loss_sum(micro_batch)
                self.trainee.scaler.scale(loss / mean).backward()
                total += loss.detach()
        if self.device.type == "cuda" and self.objective.reads_ahead:  # reads while the GPU computes
            self.ahead = step + 1, self.objective.rows(step + 1)
        return total / n_targets

    def _find_spike(self, loss: float, norm: float) -> str | None:
        threshold, scaler = self.config.skip_spikes, self.trainee.scaler
        is_scalers = scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)  # its business, see below
        if threshold is None or is_scalers:
            return None
        return find_spike(self.trainee.progress.spikes, threshold, loss, norm)

    def _check_finite(self, loss: float, norm: float) -> None:
        # In float16 an infinite gradient is the scaler's business: it skips the step and lowers its scale.
        if not math.isfinite(loss):
            raise NotFinite(f"the loss became {loss}")
        scaler = self.trainee.scaler
        if not math.isfinite(norm) and (not scaler.is_enabled() or scaler.get_scale() < 1):
            raise NotFinite(f"the gradient's norm became {norm}")

    def evaluation_loss_sum(self, rows: Any) -> Tensor:
        """Return the summed loss of rows without dropout."""
        self.trainee.model.eval()
        try:
            if self.world.size > 1:
                return self.world.sum_of_parts(self.loss_sum, rows)
            if len(rows) < self.config.batch_size:  # the last few rows of a short split: not worth compiling for
                return self._plain_loss_sum(rows)
            return self.loss_sum(rows)
        finally:
            self.trainee.model.train()


def use_deterministic_arithmetic() -> None:
    """Make PyTorch add in the same order every time; by default, racing threads sum the embedding's gradient."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that writes all memory twice
