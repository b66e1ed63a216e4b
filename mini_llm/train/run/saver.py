"""Saving costs a copy: the state goes to host memory, and a thread writes it to the disk while training goes on.

At most one checkpoint is being written. `latest` moves, and old checkpoints go, only when all of it is on the disk.
What goes wrong in the thread is raised by the next `poll`, `save` or `wait`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.pointers import is_pointer, list_checkpoints, write_pointer
from mini_llm.threads import Worker, WorkerDied
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.optim.average import WeightAverage
from mini_llm.train.parallel.boxes import whole
from mini_llm.train.parallel.sharded import Shares
from mini_llm.train.parallel.spread import keeps_shares
from mini_llm.train.parallel.world import World
from mini_llm.train.run.milestones import milestone_steps, save_milestone
from mini_llm.train.run.resume import (
    Progress,
    Snapshot,
    Trainee,
    checkpoint_folder,
    prune_checkpoints,
    save_checkpoint,
)


class Saver:
    """Writes the checkpoints of one run. `sync()` is called first: the lines of earlier steps must be on the disk."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        tokenizer: Tokenizer,
        sync: Callable[[], None],
        world: World | None = None,
    ) -> None:
        self.run, self.config, self.tokenizer, self.sync = run, config, tokenizer, sync
        self.world = world or World()
        self.gathers = not (self.world.size > 1 and keeps_shares(config))
        self._writer: Worker[None] | None = None
        self._snapshot: Snapshot | None = None
        self._best: Path | None = None  # what `best` shall lead to when the thread has written it
        self._saved_at = time.monotonic()
        self._gives_up = threading.Event()

    def is_due(self) -> bool:
        """Tell whether `save_minutes` have passed since the last checkpoint or the start."""
        minutes = self.config.save_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, trainee: Trainee) -> None:
        """Copy the state and begin to write it; without `async_save`, return when it is written.

        Raises:
            UserError: this checkpoint, or the one before it, could not be written.
        """
        self.wait()
        snapshot = Snapshot.of(trainee, into=self._snapshot, gathered=self.gathers)
        self._saved_at = time.monotonic()
        if self.gathers and not self.world.is_first:
            return
        if not self.config.async_save:
            self._write(snapshot)
            return
        self._snapshot = snapshot
        try:
            self._writer = Worker(lambda: self._write(snapshot))
        except (RuntimeError, MemoryError):  # no memory, or no permission, for a thread
            self._write(snapshot)

    def mark(self, trainee: Trainee, average: WeightAverage) -> bool:
        """Write the milestone of this step, where one is due; tell whether it was."""
        config, step = self.config, trainee.progress.step
        if not config.milestones or step not in milestone_steps(config.max_iters):
            return False
        with average.in_place():
            found = trainee.kept.weights(trainee.model)
            weights = {name: whole(w).to("cpu", torch.bfloat16).contiguous() for name, w in found.items()}
        if self.world.is_first:
            save_milestone(self.run, step, weights, trainee.model.config, self.tokenizer, trainee.kept)
        return True

    def mark_best(self, step: int) -> None:
        """Point RUN/best to the checkpoint of `step`, as soon as there is one; there is none of step 0."""
        if not self.world.is_first:
            return
        folder = checkpoint_folder(self.run, step)
        if self._writer is not None and self._snapshot is not None and self._snapshot.step == step:
            self._best = folder
            self.poll()
        elif folder.exists():
            write_pointer(self.run / "best", folder)

    def repair_pointers(self, progress: Progress) -> None:
        """After resuming, make `latest` and `best` what they were at that step, whatever has become of them since."""
        if not self.world.is_first:
            return
        write_pointer(self.run / "latest", checkpoint_folder(self.run, progress.step))
        if is_pointer(self.run / "best"):
            (self.run / "best").unlink()
        if progress.best_step is not None:
            self.mark_best(progress.best_step)

    def poll(self) -> None:
        """Finish a checkpoint that has been written meanwhile.

        Raises:
            UserError: it could not be written.
        """
        if self._writer is not None and not self._writer.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        writer, best, snapshot = self._writer, self._best, self._snapshot
        self._writer = self._best = None
        if writer is not None and snapshot is not None:
            try:
                writer.result()
            except WorkerDied:  # for lack of memory: its work is done here
                self._write(snapshot)
        if best is not None:
            write_pointer(self.run / "best", best)

    def close(self) -> None:
        """Wait, when something else has gone wrong already: a further problem is only told."""
        self._gives_up.set()
        try:
            self.wait()
        except (UserError, OSError) as problem:
            log.warn(str(problem))

    def _write(self, snapshot: Snapshot) -> None:
        self.sync()
        shares = None if self.gathers else Shares(snapshot, self.world, self._gives_up)
        if shares and not self.world.is_first:
            shares.write(checkpoint_folder(self.run, snapshot.step))
            return
        save_checkpoint(self.run, snapshot, self.tokenizer, shares)
        also_keep = {snapshot.state["best_step"]}
        if self.config.always_save_checkpoint:
            also_keep |= {step for step, _ in list_checkpoints(self.run) if step % self.config.eval_interval == 0}
        prune_checkpoints(self.run, snapshot.step, self.config.keep_last, also_keep)
