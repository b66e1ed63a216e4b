"""Training: show the model rows of text, measure its surprise, nudge every weight, again.

`train()` reads like a table of contents. A run stopped anywhere, by a signal, a crash or kill -9, goes on from its last
checkpoint and ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.checkpoint import write_pointer
from mini_llm.config import dump_config, load_config
from mini_llm.data.token_store import TokenStore
from mini_llm.device import memory_gb, peak_flops, pick_device, pick_dtype
from mini_llm.errors import Interrupted, UsageError, UserError
from mini_llm.files import write_text
from mini_llm.model.accounting import count_parameters, flops_per_token
from mini_llm.model.transformer import Transformer
from mini_llm.signals import handle_signals
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.compiled import build_loss_sum
from mini_llm.train.config import TrainConfig
from mini_llm.train.dataloader import TrainLoader
from mini_llm.train.display import Clock, Display, Reading
from mini_llm.train.evaluate import Evaluator
from mini_llm.train.lr_scheduler import learning_rate
from mini_llm.train.metrics import MetricsLog
from mini_llm.train.optimizer import build_optimizers
from mini_llm.train.resume import (
    Progress,
    Trainee,
    checkpoint_folder,
    list_checkpoints,
    prune_checkpoints,
    restore_latest,
    save_checkpoint,
)

AfterEvaluation = Callable[[int, Transformer], None]


def train(config: TrainConfig, after_evaluation: AfterEvaluation | None = None) -> Path:
    """Train, or go on training, and return the run folder.

    `after_evaluation(step, model)` is called after each evaluation, for instance to show samples.

    Raises:
        UserError: bad data or settings, a loss that is not finite, no memory, a full disk; all work up to the last
            checkpoint is safe.
        Interrupted: SIGINT or SIGTERM came; the step was finished and saved.
    """
    run = open_run(config)
    trainer = Trainer(config, run, after_evaluation)
    try:
        with handle_signals(trainer.request_stop), trainer.display.live():
            trainer.run()
    except torch.OutOfMemoryError:
        raise UserError(
            f"out of memory on {trainer.device} with batch_size={config.batch_size}, block_size={config.block_size}",
            f"try batch_size={max(1, config.batch_size // 2)} "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps * 2}: the same step in half the room",
        ) from None
    finally:
        trainer.metrics.close()
    return run


def open_run(config: TrainConfig) -> Path:
    """Create the run folder, or check that the one that is there belongs to these settings.

    Raises:
        UsageError: the folder holds a run of another model.
    """
    run = Path(config.out_dir)
    if not config.resume and list_checkpoints(run):
        aside = next(p for i in range(1, 10**6) if not (p := run.with_name(f"{run.name}.{i}")).exists())
        shutil.move(run, aside)
        log.info(f"the earlier run in {run} was moved to {aside}")
    if run.exists() and not run.is_dir():
        raise UsageError(f"out_dir={run} is a file")
    before = run / "config.yaml"
    if before.exists() and list_checkpoints(run):
        _compare(load_config(TrainConfig, before), config, run)
    run.mkdir(parents=True, exist_ok=True)
    for leftover in (run / "checkpoints").glob(".step-*"):  # a checkpoint that a kill cut short
        shutil.rmtree(leftover)
    write_text(before, dump_config(config))
    return run


def _compare(old: TrainConfig, new: TrainConfig, run: Path) -> None:
    a, b = (
        {**c.model_dump(exclude={"model", "resume"}), **c.model.model_dump(exclude={"multiple_of"})} for c in (old, new)
    )
    changed = [f"{key} {a[key]} -> {b[key]}" for key in a if a[key] != b[key]]
    in_model = [c for c in changed if c.split()[0] in type(new.model).model_fields]
    if in_model:
        raise UsageError(
            f"{run} holds a run of another model: {', '.join(in_model)}",
            "give another out_dir=..., or --no-resume to start anew (the old run is moved aside)",
        )
    if changed:
        log.info(f"changed since the run began: {', '.join(changed)}")


class Trainer:
    """One run: everything that `run()` needs, built once."""

    def __init__(self, config: TrainConfig, run: Path, after_evaluation: AfterEvaluation | None) -> None:
        self.config, self.folder, self.after_evaluation = config, run, after_evaluation
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        store = TokenStore.open(config.data_dir)
        self.tokenizer = open_tokenizer(store, config)
        self.loader = TrainLoader(
            store.split("train"), block_size=config.block_size, rows_per_step=config.rows_per_step, seed=config.seed
        )
        self.evaluator = Evaluator(
            store.split("val"),
            block_size=config.block_size,
            batch_size=config.batch_size,
            max_rows=config.eval_iters * config.batch_size,
            token_bytes=self.tokenizer.token_bytes(),
        )
        self.trainee = build_trainee(config, self.device, self.dtype)
        if config.resume and restore_latest(run, self.trainee):
            log.info(f"resuming {run} at step {self.trainee.progress.step:,}")
        self.metrics = MetricsLog(run, config, self.trainee.progress.step)
        self.display = Display()
        self.clock = Clock()
        self.stop_signal: int | None = None

    def run(self) -> None:
        """Train from where the trainee stands to `max_iters`."""
        config, progress = self.config, self.trainee.progress
        log.info(self._describe())
        if progress.step >= config.max_iters and progress.step in dict(list_checkpoints(self.folder)):
            log.info(f"{self.folder} has its {progress.step:,} steps already; raise max_iters to go on")
            return
        example = self.loader.rows(0)[: config.batch_size].to(self.device)
        self.loss_sum = build_loss_sum(self.trainee.model, self.dtype, example, compile=config.compile)
        self.peak = peak_flops(self.device, self.dtype)
        self.clock.restart()
        first = progress.step
        while True:
            self._save_and_evaluate(is_first=progress.step == first)
            if progress.step >= config.max_iters:
                break
            self._step()
            if self.stop_signal is not None:
                self._stop()
        log.info(f"done: {self.folder}\nnext: mini-llm generate {self.folder} --prompt 'The '")

    def _step(self) -> None:
        """Do one step: sum the gradients of all micro-batches, shorten, update."""
        config, step, trainee = self.config, self.trainee.progress.step, self.trainee
        lr = learning_rate(step, config)
        for optimizer in trainee.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr / config.learning_rate if config.learning_rate else 0.0
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout is a function of (seed, step) too
        loss = self._backward(step)
        for optimizer in trainee.optimizers:
            trainee.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), config.grad_clip or math.inf).item()
        self._check_finite(step, loss, norm)
        for optimizer in trainee.optimizers:
            trainee.scaler.step(optimizer)
        trainee.scaler.update()
        trainee.model.zero_grad(set_to_none=True)
        trainee.progress.step += 1
        self.clock.step()
        self._report(loss, lr, norm)

    def _backward(self, step: int) -> float:
        """Add up the gradients of the mean loss over all target tokens of the step; return that loss."""
        rows = self.loader.rows(step)
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(self.device, non_blocking=True)
        n_targets = rows[:, 1:].numel()
        total = torch.zeros((), device=self.device)
        for micro_batch in rows.split(self.config.batch_size):
            loss = self.loss_sum(micro_batch)
            self.trainee.scaler.scale(loss / n_targets).backward()
            total += loss.detach()
        return total.item() / n_targets

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        """Stop before a broken gradient reaches the weights; in float16 the scaler skips such a step instead."""
        scaled = self.trainee.scaler.is_enabled()
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            return
        what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient norm became {norm}"
        last = list_checkpoints(self.folder)
        safe = f"the last good checkpoint is {last[-1][1]}" if last else "there is no checkpoint yet"
        raise UserError(
            f"{what} at step {step + 1}; {safe}",
            f"run again, it resumes from there, with learning_rate={self.config.learning_rate / 2:g} or a longer "
            "warm-up (warmup_iters); dtype=float32 tells whether precision is the cause",
        )

    def _report(self, loss: float, lr: float, norm: float) -> None:
        config, step = self.config, self.trainee.progress.step
        is_log_step = step % config.log_interval == 0 or step == config.max_iters or step == 1
        seconds = self.clock.seconds_per_step
        speed = config.tokens_per_step / seconds
        mfu = speed * flops_per_token(config.model, config.block_size) / self.peak if self.peak else None
        reading = Reading(
            step=step,
            max_iters=config.max_iters,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens_per_second=speed,
            mfu=mfu,
            memory_gb=memory_gb(self.device),
            epoch=self.loader.epoch(step),
            seconds_left=seconds * (config.max_iters - step),
        )
        self.display.show(reading, is_log_step=is_log_step)
        if is_log_step:
            metrics = {"tokens": step * config.tokens_per_step, "loss": loss, "lr": lr, "grad_norm": norm}
            timing = {"tokens_per_second": speed, "mfu": mfu, "memory_gb": reading.memory_gb}
            self.metrics.write(step, metrics, timing)
            self.clock.restart()

    def _save_and_evaluate(self, *, is_first: bool) -> None:
        """Write a checkpoint and evaluate where they are due: weights first, so that no evaluation can lose them."""
        config, step = self.config, self.trainee.progress.step
        is_end = step == config.max_iters
        evaluates = step % config.eval_interval == 0 or is_end
        saves = step > 0 and (step % config.save_interval == 0 or is_end or evaluates)
        if saves and not is_first:
            self._save()
        if not evaluates:
            return
        result = self.evaluator.run(self._evaluation_loss, self.device)
        progress = self.trainee.progress
        is_best = progress.best_loss is None or result.loss < progress.best_loss
        if is_best:
            progress.best_loss, progress.best_step = result.loss, step
        if is_best and step > 0:
            write_pointer(self.folder / "best", checkpoint_folder(self.folder, step))
        self.metrics.write(step, {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte})
        self.display.show_held_out(step, result.loss, result.bits_per_byte, is_best)
        if self.after_evaluation:
            self.after_evaluation(step, self.trainee.model)
        self.clock.restart()

    def _evaluation_loss(self, rows: Tensor) -> Tensor:
        self.trainee.model.eval()
        try:
            return self.loss_sum(rows)
        finally:
            self.trainee.model.train()

    def _save(self) -> None:
        config = self.config
        save_checkpoint(self.folder, self.trainee, self.tokenizer)
        evaluated = {s for s, _ in list_checkpoints(self.folder) if s % config.eval_interval == 0}
        prune_checkpoints(self.folder, config.keep_last, evaluated if config.always_save_checkpoint else set())

    def request_stop(self, signal_number: int, _frame: FrameType | None) -> None:
        """Note a signal; the step that runs is finished first. A second one ends the process at once."""
        if self.stop_signal is not None:
            signal.signal(signal_number, signal.SIG_DFL)
            signal.raise_signal(signal_number)
        self.stop_signal = signal_number
        log.info("stopping after this step (once more to stop at once, without saving) ...")

    def _stop(self) -> None:
        assert self.stop_signal is not None
        self._save()
        step = self.trainee.progress.step
        raise Interrupted(
            self.stop_signal, f"saved step {step:,} in {self.folder}; the same command goes on from there"
        )

    def _describe(self) -> str:
        c, model = self.config, self.config.model
        return (
            f"{count_parameters(model):,} parameters ({model.n_layers} layers x {model.dim}) on {self.device.type}, "
            f"{str(self.dtype).removeprefix('torch.')}; {c.tokens_per_step:,} tokens a step, {c.max_iters:,} steps, "
            f"{c.max_iters / max(1e-9, self.loader.rows_per_epoch / c.rows_per_step):.1f} epochs"
        )


def open_tokenizer(store: TokenStore, config: TrainConfig) -> Tokenizer:
    """Return the store's tokenizer, after checking that the model has room for its ids.

    Raises:
        UserError: the tokenizer is not the one that wrote the store, or has more ids than the model.
    """
    tokenizer = Tokenizer.load(store.tokenizer_folder)
    if tokenizer.fingerprint != store.manifest.tokenizer_hash:
        raise UserError(
            f"{store.tokenizer_folder} is not the tokenizer that wrote {config.data_dir}",
            f"make the store again: mini-llm prepare SOURCES --tokenizer DIR --out {config.data_dir}",
        )
    size, room = store.manifest.vocab_size, config.model.vocab_size
    if size > room:
        raise UsageError(
            f"the tokens in {config.data_dir} have {size:,} ids, the model has room for model.vocab_size={room:,}",
            f"train with model.vocab_size={size}",
        )
    if size < room:
        log.warn(
            f"model.vocab_size={room:,} but the tokenizer has {size:,} ids: model.vocab_size={size} wastes nothing"
        )
    return tokenizer


def build_trainee(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> Trainee:
    """Return a new model with its optimizers, at step 0."""
    model = Transformer(config.model)
    model.init_weights(config.seed)
    model.to(device).train()
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return Trainee(model, build_optimizers(model, config), scaler, Progress())
