"""A run that was moved or copied goes on where it is: its own record still names the old place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mini_llm import log
from mini_llm.pointers import list_checkpoints
from mini_llm.train.config import TrainConfig

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def follow_moved(config: ConfigT, path: Path | None, words: Sequence[str]) -> ConfigT:
    """Return `config` with the folder of `path` as out_dir, where `path` is the record of a run that was moved.

    An out_dir among `words`, the settings that were typed, counts more.
    """
    is_given = any(word.lstrip("-").startswith("out_dir=") for word in words)
    if path is None or is_given or path.name != "config.yaml":
        return config
    run = path.parent
    if not list_checkpoints(run) or run.resolve() == Path(config.out_dir).resolve():
        return config
    log.info(f"{path} is the record of a run that was moved or copied from {config.out_dir}: out_dir={run}")
    return config.model_copy(update={"out_dir": str(run)})
