"""Training: show the model rows of text, measure its surprise, nudge every weight, again.

`Trainer.run` reads like a table of contents. A run that was stopped anywhere, by a signal, a crash or kill -9, goes on
from its last checkpoint and ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from mini_llm import log
from mini_llm.device import memory_gb, peak_flops
from mini_llm.errors import Interrupted, UserError
from mini_llm.model.accounting import flops_per_token
from mini_llm.model.transformer import Transformer
from mini_llm.signals import handle_signals
from mini_llm.train.config import TrainConfig
from mini_llm.train.objective import Objective, Pretraining
from mini_llm.train.parallel.world import World, start_world
from mini_llm.train.probe import MakeProbe, SignalCame, ask_safely
from mini_llm.train.run.budget import Budget, decided
from mini_llm.train.run.display import Clock, Display, Reading
from mini_llm.train.run.diverged import diverged
from mini_llm.train.run.kept import parameters_in_words
from mini_llm.train.run.metrics import MetricsLog, NoLog
from mini_llm.train.run.out_of_memory import fit_memory
from mini_llm.train.run.profiler import StepProfiler
from mini_llm.train.run.resume import go_on_with_data, restore_latest, what_is_kept
from mini_llm.train.run.run_folder import keep_batch, open_run
from mini_llm.train.run.saver import Saver
from mini_llm.train.sample import write_sample
from mini_llm.train.step import NotFinite, Stepper, StepResult
from mini_llm.user_files import reason

AfterEvaluation = Callable[[int, Transformer], None]
MakeObjective = Callable[[TrainConfig], Objective]


def train(
    config: TrainConfig,
    after_evaluation: AfterEvaluation | None = None,
    make_objective: MakeObjective = Pretraining,
    make_probe: MakeProbe | None = None,
) -> Path:
    """Train, or go on training, and return the run folder.

    `after_evaluation(step, model)` is called after each evaluation, for instance to show samples. `make_objective`
    makes of the settings what is trained for; they may have a smaller micro-batch than `config` (`auto_batch`).
    `make_probe` makes of them what the model is asked now and then (`eval_tasks`).

    Raises:
        UserError: bad data or settings, a loss that is not finite, no memory, a full disk; all work up to the last
            checkpoint is safe.
        Interrupted: SIGINT or SIGTERM came; the last whole step was saved.
    """
    started, first = time.monotonic(), keep_batch(config)
    with start_world(first) as world:

        def attempt(fitting: TrainConfig) -> Path:
            if fitting is first:
                return _train(first, world, started, after_evaluation, make_objective, make_probe)
            # What the failed attempt has saved already is of this run, also where it began with --no-resume.
            fitting = fitting.model_copy(update={"resume": True})
            return _train(fitting, world, started, after_evaluation, make_objective, make_probe, note_batch=True)

        return fit_memory(first, attempt)


def _train(
    config: TrainConfig,
    world: World,
    started: float,
    after_evaluation: AfterEvaluation | None,
    make_objective: MakeObjective,
    make_probe: MakeProbe | None,
    *,
    note_batch: bool = False,
) -> Path:
    try:
        with world.led(open_run(config), Path(config.out_dir)) as run:
            config = decided(config)
            objective = world.checked(make_objective(config))
            trainer = Trainer(config, run, objective, started, after_evaluation, make_probe, world)
            try:
                if note_batch:
                    keys = ("batch_size", "gradient_accumulation_steps")
                    trainer.metrics.write(trainer.progress.step, {key: getattr(config, key) for key in keys})
                with handle_signals(trainer.request_stop), trainer.display.live():
                    trainer.run()
            finally:
                trainer.close()
    except OSError as problem:
        what = f"cannot write {problem.filename or config.out_dir}: {reason(problem)}"
        raise UserError(what, what_is_kept(Path(config.out_dir), config.resume)) from None
    return run


class Trainer:
    """One run: everything that `run()` needs, built once."""

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        objective: Objective,
        started: float,
        after_evaluation: AfterEvaluation | None,
        make_probe: MakeProbe | None = None,
        world: World | None = None,
    ) -> None:
        self.config, self.folder, self.after_evaluation = config, run, after_evaluation
        self.world = world or World()
        self.ends_at = math.inf if config.max_minutes is None else started + 60 * config.max_minutes
        self.tokenizer, self.evaluator = objective.tokenizer, objective.evaluator
        self.probe = make_probe(config, self.tokenizer) if make_probe else None
        self.stepper = Stepper(config, objective, self.world)
        resumed = restore_latest(run, self.stepper.trainee)
        self.progress = self.stepper.trainee.progress
        self.metrics = MetricsLog(run, config, self.progress.step) if self.world.is_first else NoLog()
        self.saver = Saver(run, config, self.tokenizer, self.metrics.sync, self.world)
        if resumed:
            self.stepper.average.restored()
            log.info(f"resuming {run} at {go_on_with_data(self.progress, objective, config)}")
            self.saver.repair_pointers(self.progress)
        self.profiler = StepProfiler(run, self.stepper.device) if config.profile and self.world.is_first else None
        self.display, self.clock, self.budget = Display(), Clock(), Budget(config, run)
        self.saved_step = self.progress.step
        self.stop_signal: int | None = None
        self.stepper.before_batch = self.evaluator.before_batch = self._heed_signal
        self.stepper.wants = self._wants
        self.peak_flops = peak_flops(self.stepper.device, self.stepper.dtype) if objective.has_mfu else None
        self.flops_per_token = flops_per_token(config.model, config.block_size)

    def run(self) -> None:
        """Train from where the trainee stands to `max_iters`."""
        log.info(self._describe())
        self.stepper.compile()
        self.clock.restart()
        try:
            while True:
                self.budget.fit(self)
                self._save_and_evaluate()
                if self.progress.step >= self.config.max_iters:
                    break
                self._step()
                if any(self._wanted()[:2]) and self.config.is_whole(self.progress.step):
                    self._stop()
                    return
        except SignalCame:
            self._stop()
        self.saver.wait()
        log.info(f"done: {self.folder}")

    def close(self) -> None:
        """Finish what is being written, however the run ended."""
        self.saver.close()
        self.metrics.close()
        if self.profiler:
            self.profiler.close()

    def _step(self) -> None:
        self.saver.poll()
        step = self.stepper.step
        try:
            result = self.profiler.step(step) if self.profiler else step()
        except NotFinite as problem:
            self.saver.close()
            raise diverged(problem, self.config, self.folder, self.progress.step) from None
        self.clock.step()
        self._report(result)
        if self.profiler and self.profiler.report():
            self.clock.restart()

    def _report(self, result: StepResult) -> None:
        config, step = self.config, self.progress.step
        is_log_step = step % config.log_interval == 0 or step in (1, config.max_iters)
        seconds = self.clock.seconds_per_step
        speed = result.tokens / seconds
        reading = Reading(
            step=step,
            max_iters=config.max_iters,
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens_per_second=speed,
            mfu=speed * self.flops_per_token / (self.peak_flops * self.world.size) if self.peak_flops else None,
            memory_gb=memory_gb(self.stepper.device),
            epoch=self.stepper.objective.epoch(step),
            seconds_left=seconds * (config.max_iters - step),
            more=result.more,
        )
        self.display.show(reading, is_log_step=is_log_step)
        metrics = reading.metrics(self.progress.tokens_seen)
        if result.skipped:
            self.display.show_skipped(step, result.skipped)
            metrics["skipped"] = True
        if is_log_step or result.skipped:
            self.metrics.write(step, metrics, reading.timing() if is_log_step else None)
        if is_log_step:
            self.clock.restart()

    def _save_and_evaluate(self) -> None:
        """Write a checkpoint and evaluate where they are due: weights first, so that no evaluation can lose them."""
        config, step = self.config, self.progress.step
        is_end = step >= config.max_iters
        evaluates = step % config.eval_interval == 0 or is_end
        samples = config.sample_interval is not None and step > 0 and (step % config.sample_interval == 0 or is_end)
        saves = (evaluates or step % config.save_interval == 0 or self._wanted()[2]) and step > self.saved_step
        saves = saves and config.is_whole(step)
        if saves:
            self.save()
        probes = self.probe is not None and step > 0 and (step % config.probe_interval == 0 or is_end)
        for is_due, look in ((evaluates, self._evaluate), (samples, self._sample), (probes, self._ask)):
            if is_due:
                with self.stepper.average.in_place():
                    look()
        if any([saves, evaluates, samples, probes, self.saver.mark(self.stepper.trainee, self.stepper.average)]):
            self.clock.restart()

    def _evaluate(self) -> None:
        step, progress = self.progress.step, self.progress
        result = self.evaluator.run(self.stepper.evaluation_loss_sum, self.stepper.device)
        is_best = math.isfinite(result.loss) and (progress.best_loss is None or result.loss < progress.best_loss)
        if is_best:
            progress.best_loss, progress.best_step = result.loss, step
            self.saver.mark_best(step)
        self.metrics.write(step, result.metrics())
        self.display.show_held_out(step, result.describe(), is_best)
        if self.after_evaluation:
            self.saver.wait()  # it may read what has just been saved
            self.after_evaluation(step, self.stepper.trainee.model)

    def _sample(self) -> None:
        step, prompt = self.progress.step, self.config.sample_prompt
        text = self.stepper.spread.look(lambda m: write_sample(m, self.tokenizer, prompt, seed=self.config.seed))
        if text is not None:
            self.metrics.write_sample(step, prompt, text)
            self.display.show_sample(step, prompt, text)

    def _ask(self) -> None:
        step = self.progress.step
        found = self.stepper.spread.look(lambda model: ask_safely(self.probe, step, model, self._heed_signal))
        if self.probe and found:
            self.metrics.write(step, found)
            self.display.show_tasks(step, self.probe.describe(found))

    def save(self) -> None:
        """Write a checkpoint of this step."""
        with self.stepper.average.in_place():
            self.saver.save(self.stepper.trainee)
        self.saved_step = self.progress.step

    def request_stop(self, signal_number: int, _frame: FrameType | None) -> None:
        """Note a signal: a micro-batch that runs is finished first. A second one ends the process at once."""
        if self.stop_signal is not None:
            log.console().show_cursor()  # the live table hides it
            signal.signal(signal_number, signal.SIG_DFL)
            signal.raise_signal(signal_number)
        self.stop_signal = signal_number
        log.info("saving; once more ends at once, without saving ...")

    def _heed_signal(self) -> None:
        is_alone = self.world.size == 1  # several stop together, after a whole step
        if self.stop_signal is not None and is_alone and self.config.is_whole(self.progress.step):
            raise SignalCame

    def _wants(self) -> tuple[float, float, float]:
        """Return whether this process has a signal to stop, is out of time, and would save, by its own clock."""
        return self.stop_signal is not None, time.monotonic() >= self.ends_at, self.saver.is_due()

    def _wanted(self) -> Sequence[float]:
        """Return the same of all processes, as they told each other in the last step; alone, as it is now."""
        return self._wants() if self.world.size == 1 else self.stepper.heard or (0, 0, 0)

    def _stop(self) -> None:
        """Save and end: with an error for a signal, in peace after `max_minutes`."""
        if (step := self.progress.step) > self.saved_step:
            self.save()
        self.saver.wait()
        same = "the same command" if self.config.resume else "the same command without --no-resume"
        message = f"saved step {step:,} in {self.folder}; {same} goes on from there"
        message = message if step else "stopped before the first step was done: there is nothing to save"
        if self._wanted()[0]:
            raise Interrupted(self.stop_signal or signal.SIGTERM, message)
        log.info(f"max_minutes={self.config.max_minutes:g} are over: {message}")

    def _describe(self) -> str:
        c, stepper = self.config, self.stepper
        where = f"{stepper.device.type}, {str(stepper.dtype).removeprefix('torch.')}"
        steps = f"{c.step_size}, {c.max_iters:,} steps, {stepper.objective.epoch(c.max_iters):.1f} epochs"
        return f"{parameters_in_words(stepper.trainee.model)} on {where}; {steps}"
