"""Checkpoints too large for one process: each writes its shares into one folder, and the first one makes it whole.

They meet in the folder alone, which all machines must see: the threads that write exchange no messages, so that none
can come between those of training. A share is complete when its hash lies beside it; when all are, the first process
writes the index and renames the folder. Killed anywhere before, there is no checkpoint of that step.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mini_llm import shares
from mini_llm.checkpoint import write_tensors
from mini_llm.errors import UserError
from mini_llm.files import sha256_of
from mini_llm.train.parallel.boxes import box_of, local
from mini_llm.train.parallel.world import World
from mini_llm.user_files import reason

if TYPE_CHECKING:
    from mini_llm.train.run.resume import Snapshot, Trainee

GLANCE = 0.01  # seconds between two looks at what the others have written
PATIENCE = 3600.0  # seconds for the slowest of them; 10 once something has gone wrong


class Shares:
    """This process's part in writing one checkpoint. `gives_up` is set when the run ends in disorder."""

    def __init__(self, snapshot: Snapshot, world: World, gives_up: threading.Event) -> None:
        self.snapshot, self.world, self.gives_up = snapshot, world, gives_up

    def temporary(self, folder: Path) -> Path:
        """Return the name that the folder has in all processes until it is whole."""
        return folder.with_name(f".{folder.name}.tmp-{self.world.token}")

    def write(self, folder: Path) -> None:
        """Write this process's share as soon as the first process has made the folder.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        place = self.temporary(folder) / shares.FOLDER
        self._wait_for([place])
        try:
            self._write(place.parent)
        except OSError as problem:
            raise UserError(
                f"could not write share {self.world.rank} of step {self.snapshot.step}'s checkpoint: {reason(problem)}",
                "earlier checkpoints are untouched: make room and run the same command again, it resumes",
            ) from None

    def write_and_collect(self, temporary: Path) -> dict[str, str]:
        """Write the first process's share and the index, when all are there; return the files' hashes.

        Raises:
            OSError: the disk is full.
            UserError: another process did not write its share.
        """
        (temporary / shares.FOLDER).mkdir()
        self._write(temporary)
        names = [shares.share_name(rank, self.world.size) for rank in range(self.world.size)]
        marks = [temporary / f"{name}.sha256" for name in names]
        self._wait_for(marks)
        sums = {name: mark.read_text(encoding="ascii") for name, mark in zip(names, marks, strict=True)}
        for mark in marks:
            mark.unlink()
        index = shares.index_of(self.snapshot.all_boxes, self.world.size)
        (temporary / shares.INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return sums

    def _write(self, temporary: Path) -> None:
        snapshot, path = self.snapshot, temporary / shares.share_name(self.world.rank, self.world.size)
        assert snapshot.boxes is not None
        places = json.dumps({name: box.offset for name, box in snapshot.boxes.items()})
        write_tensors(snapshot.weights | snapshot.optimizer, path, {shares.PLACES: places})
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        half = path.with_name(f"{path.name}.half")
        half.write_text(sha256_of(path), encoding="ascii")
        half.rename(path.with_name(f"{path.name}.sha256"))

    def _wait_for(self, paths: list[Path]) -> None:
        end = time.monotonic() + PATIENCE
        while not all(path.exists() for path in paths):
            time.sleep(GLANCE)
            if self.gives_up.is_set():
                end = min(end, time.monotonic() + 10)
            if time.monotonic() > end:
                missing = next(path for path in paths if not path.exists())
                raise UserError(
                    f"{missing} did not come: a process of this run has ended, or sees another disk",
                    "out_dir must be one folder for all machines; earlier checkpoints are untouched",
                )


def read_shares(folder: Path, trainee: Trainee) -> dict[str, torch.Tensor]:
    """Fill the model of `trainee` from a checkpoint in shares; return the optimizers' tensors, spread as it is.

    Raises:
        KeyError, ValueError: the checkpoint is of another model.
        DamagedCheckpoint: a share is missing or damaged.
    """
    from mini_llm.checkpoint import model_weights

    reader = shares.ShareReader(folder, near=trainee.world.rank)
    weights = model_weights(trainee.model)
    with torch.no_grad():
        for name, weight in weights.items():
            local(weight).copy_(reader.read(name, box_of(weight)))
        tensors = {}
        parameters = dict(trainee.model.named_parameters())
        for key, shape in reader.shapes.items():
            if key in weights:
                continue
            like = parameters[key.partition("/")[2]]
            if shape != tuple(like.shape):
                tensors[key] = reader.read(key, shares.Box.whole(shape))
                continue
            tensors[key] = torch.zeros_like(like)
            local(tensors[key]).copy_(reader.read(key, box_of(like)))
    return tensors
