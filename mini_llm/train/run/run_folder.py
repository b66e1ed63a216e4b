"""The run folder: settings, numbers, samples and checkpoints of one run, and the pointers `latest` and `best`.

`config.yaml metrics.jsonl timing.jsonl samples.jsonl plots/ profile/ checkpoints/`.
One process at a time may write to it, and only to a run of the same model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_llm import log
from mini_llm.config import dump_config, load_config
from mini_llm.errors import UsageError, UserError
from mini_llm.files import write_text
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.out_of_memory import with_batch
from mini_llm.train.run.resume import list_checkpoints


@contextmanager
def open_run(config: TrainConfig) -> Iterator[Path]:
    """Yield the run folder, created or checked, and held while the block runs.

    Raises:
        UsageError: the folder holds a run of another model, or is a file.
        UserError: another process trains in it, or it cannot be written.
    """
    check_run(config)
    run = Path(config.out_dir)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"cannot create out_dir={run}: {problem.strerror}") from None
    if not config.resume and list_checkpoints(run):
        _move_aside(run)
    with _locked(run):
        for leftover in (run / "checkpoints").glob(".step-*"):  # a checkpoint that a kill cut short
            shutil.rmtree(leftover)
        for leftover in run.glob(".*.tmp*"):
            leftover.unlink()
        # Whoever trains with the record goes on with the run, however it began.
        write_text(run / "config.yaml", dump_config(config.model_copy(update={"resume": True})))
        yield run


def check_run(config: TrainConfig) -> None:
    """Refuse to go on with a run of another model, and tell which settings have changed; writes nothing.

    Raises:
        UsageError: the folder holds a run of another model or optimizer, or is a file.
        UserError: its record is damaged.
    """
    run = Path(config.out_dir)
    if run.exists() and not run.is_dir():
        raise UsageError(f"out_dir={run} is a file", "give another out_dir=...")
    if config.resume and list_checkpoints(run) and (run / "config.yaml").exists():
        _compare(_recorded(run, type(config)), config, run)


def keep_batch(config: TrainConfig) -> TrainConfig:
    """Return `config` with the smaller micro-batch that `auto_batch` found when this run began, if it did."""
    record = Path(config.out_dir) / "config.yaml"
    if not (config.auto_batch and config.resume and record.is_file()):
        return config
    try:
        old = load_config(type(config), record)
    except UserError:  # `open_run` tells it
        return config
    is_same_step = old.auto_batch and old.rows_per_step == config.rows_per_step
    if not is_same_step or old.batch_size >= config.batch_size:
        return config
    log.info(f"auto_batch: batch_size={old.batch_size}, as this run found before")
    return with_batch(config, old.batch_size)


def _move_aside(run: Path) -> None:
    with _locked(run):
        aside = next(p for i in range(1, 10**6) if not (p := run.with_name(f"{run.name}.{i}")).exists())
        run.rename(aside)
    run.mkdir()
    log.info(f"the earlier run in {run} was moved to {aside}")


def _recorded(run: Path, kind: type[TrainConfig]) -> TrainConfig:
    try:
        return load_config(kind, run / "config.yaml")
    except UserError as problem:
        raise UserError(
            f"{run / 'config.yaml'}, the record of this run's settings, is damaged: {problem.message}",
            "delete it and give the run's settings again: the checkpoints are not touched",
        ) from None


def _compare(old: TrainConfig, new: TrainConfig, run: Path) -> None:
    a, b = (
        {**c.model_dump(exclude={"model", "resume"}), **{f"model.{k}": v for k, v in c.model.model_dump().items()}}
        for c in (old, new)
    )
    changed = {key: f"{key} {a[key]} -> {b[key]}" for key in a if a[key] != b[key] and key != "model.multiple_of"}
    fixed = [key for key in changed if key == "optimizer" or (key.startswith("model.") and key != "model.dropout")]
    if fixed:
        raise UsageError(
            f"{run} holds a run of another model or optimizer: {', '.join(changed[key] for key in fixed)}",
            "give another out_dir=..., or --no-resume to start anew (the old run is moved aside)",
        )
    if changed:
        log.info(f"changed since the run began: {', '.join(changed.values())}")


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold the run; the lock ends with the process, however that ends. Without effect on Windows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {run}", "stop it, or give another out_dir=...") from None
        except OSError:
            log.warn(f"the disk of {run} knows no locks: see to it that no other process trains there")
        yield
