"""Saving costs a copy: the state goes to host memory, and a thread writes it to the disk while training goes on.

At most one checkpoint is being written. `latest` moves, and old checkpoints go, only when all of it is on the disk.
What goes wrong in the thread is raised by the next `poll`, `save` or `wait`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from mini_llm import log
from mini_llm.checkpoint import write_pointer
from mini_llm.errors import UserError
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.resume import (
    Progress,
    Snapshot,
    Trainee,
    checkpoint_folder,
    list_checkpoints,
    prune_checkpoints,
    save_checkpoint,
)


class Saver:
    """Writes the checkpoints of one run. `sync()` is called first: the lines of earlier steps must be on the disk."""

    def __init__(self, run: Path, config: TrainConfig, tokenizer: Tokenizer, sync: Callable[[], None]) -> None:
        self.run, self.config, self.tokenizer, self.sync = run, config, tokenizer, sync
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None
        self._snapshot: Snapshot | None = None
        self._best: Path | None = None  # what `best` shall lead to when the thread has written it
        self._saved_at = time.monotonic()

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
        snapshot = Snapshot.of(trainee, into=self._snapshot)
        self._saved_at = time.monotonic()
        if not self.config.async_save:
            self._write(snapshot)
            return
        self._snapshot = snapshot
        thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint writer")
        try:
            thread.start()
        except RuntimeError:  # no memory, or no permission, for a thread
            self._write(snapshot)
        else:
            self._thread = thread

    def mark_best(self, step: int) -> None:
        """Point RUN/best to the checkpoint of `step`, as soon as there is one; there is none of step 0."""
        folder = checkpoint_folder(self.run, step)
        if self._thread is not None and self._snapshot is not None and self._snapshot.step == step:
            self._best = folder
            self.poll()
        elif folder.exists():
            write_pointer(self.run / "best", folder)

    def repair_pointers(self, progress: Progress) -> None:
        """After resuming, make `latest` and `best` what they were at that step, whatever has become of them since."""
        write_pointer(self.run / "latest", checkpoint_folder(self.run, progress.step))
        (self.run / "best").unlink(missing_ok=True)
        if progress.best_step is not None:
            self.mark_best(progress.best_step)

    def poll(self) -> None:
        """Finish a checkpoint that has been written meanwhile.

        Raises:
            UserError: it could not be written.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, best = self._problem, self._best
        self._problem = self._best = None
        if problem is not None:
            raise problem
        if best is not None:
            write_pointer(self.run / "best", best)

    def close(self) -> None:
        """Wait, when something else has gone wrong already: a further problem is only told."""
        try:
            self.wait()
        except (UserError, OSError) as problem:
            log.warn(str(problem))

    def _run(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except BaseException as problem:
            self._problem = problem

    def _write(self, snapshot: Snapshot) -> None:
        self.sync()
        save_checkpoint(self.run, snapshot, self.tokenizer)
        also_keep = {snapshot.state["best_step"]}
        if self.config.always_save_checkpoint:
            also_keep |= {step for step, _ in list_checkpoints(self.run) if step % self.config.eval_interval == 0}
        prune_checkpoints(self.run, snapshot.step, self.config.keep_last, also_keep)
