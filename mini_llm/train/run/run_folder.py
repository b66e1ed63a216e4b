"""The run folder: settings, numbers, samples and checkpoints of one run, and the pointers `latest` and `best`.

`config.yaml metrics.jsonl timing.jsonl samples.jsonl plots/ profile/ checkpoints/`.
One process at a time may write to it, and only to a run of the same model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.checkpoint import CHECKPOINT_FOLDER, CHECKSUMS
from mini_llm.config import UnknownKey, dump_config, load_config
from mini_llm.errors import UsageError, UserError
from mini_llm.files import foreign_entry, free_name, write_text
from mini_llm.pointers import list_checkpoints
from mini_llm.temporary import remove_dead, temporary_name
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.out_of_memory import with_batch
from mini_llm.train.run.resume import checkpoint_folder
from mini_llm.train.run.state_check import NEWER
from mini_llm.user_files import kind_of, reason, refuse_non_utf8, shown, what_is

LINES = ("metrics.jsonl", "timing.jsonl", "samples.jsonl")
RUN_FILES = "|".join(map(re.escape, ("config.yaml", "wandb_id.txt", "reference.safetensors", "latest", "best", *LINES)))
CHECKPOINTS = "step-[0-9]{8,}"
OF_VERBS = {"task": "rl", "beta": "dpo", "base": "sft"}  # a key that only this verb's settings have, and those above it


@contextmanager
def open_run(config: TrainConfig) -> Iterator[Path]:
    """Yield the run folder, created or checked, and held while the block runs.

    Raises:
        UsageError: the folder holds a run of another model, or is a file.
        UserError: another process trains in it, or it cannot be written.
    """
    run = Path(config.out_dir)
    check_run(config)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"cannot create out_dir={shown(run)}: {reason(problem)}") from None
    if not config.resume and list_checkpoints(run):
        _move_aside(run)
    with _locked(run):
        for folder, names in ((run, RUN_FILES), (run / "checkpoints", CHECKPOINTS)):
            for leftover in folder.glob(".*.tmp-*"):  # what a kill cut short
                if re.fullmatch(rf"\.({names})\.tmp-[0-9a-f]{{8}}(-old)?(\.\w+)?", leftover.name):
                    remove_dead(leftover)
        adopt_copies(run)
        # Whoever trains with the record goes on with the run, however it began.
        write_text(run / "config.yaml", dump_config(config.model_copy(update={"resume": True})))
        yield run


def check_run(config: TrainConfig) -> None:
    """Refuse to go on with a run of another model, and tell which settings have changed; writes nothing.

    Raises:
        UsageError: the folder holds a run of another model or optimizer, or is a file.
        UserError: its record is damaged, or its name is not UTF-8.
    """
    run = Path(config.out_dir)
    refuse_non_utf8(run.absolute())
    if (kind := kind_of(run)) in ("file", "other"):
        raise UsageError(f"out_dir={shown(run)} is {what_is(run)}, not a folder", "give another out_dir=...")
    if kind == "folder" and not _is_run(run):
        for name in ("config.yaml", *LINES, "checkpoints", "latest", "best"):
            if name == "checkpoints" and not any(not p.name.startswith(".step-") for p in (run / name).glob("*")):
                continue  # of a run that was killed before its first checkpoint
            if (run / name).exists():
                raise UserError(
                    f"out_dir={shown(run)} holds {name}, but no run of Mini-LLM: nothing was changed",
                    "give another out_dir=..., or move what is there",
                )
    if config.resume and list_checkpoints(run) and (run / "config.yaml").exists():
        if (verb := verb_of(run)) != config.verb:
            raise UsageError(
                f"{run} holds a run of `mini-llm {verb}`: `{config.verb}` cannot go on with it",
                "give another out_dir=...",
            )
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


def verb_of(run: Path) -> str:
    """Return the verb that made a run, by its record; `train` where nothing says otherwise."""
    try:
        text = (run / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "train"
    return next((verb for key, verb in OF_VERBS.items() if re.search(rf"^{key}:", text, re.MULTILINE)), "train")


def read_settings(run: Path, name: str = "config.yaml") -> TrainConfig:
    """Return what a run's record says of training, whatever it was trained for.

    Raises:
        UserError: there is no record, or it is damaged.
    """
    return load_config(TrainConfig, run / name, more_keys=True)


def is_pretraining(run: Path) -> bool:
    """Tell whether a run's record is one of plain text."""
    try:
        load_config(TrainConfig, run / "config.yaml")
    except UserError:  # no record, or one of fine-tuning, whose keys differ
        return False
    return True


def adopt_copies(run: Path) -> None:
    """Make a pointer that copying has turned into a folder a checkpoint again, or drop it where that is there already.

    `cp -rL`, `rsync -L`, zip and most cloud storage follow links, and copy what `latest` and `best` lead to.
    """
    for name in ("latest", "best"):
        copy = run / name
        if copy.is_symlink() or not copy.is_dir():
            continue
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            step = json.loads((copy / "training_state" / "state.json").read_bytes())["step"]
            if not isinstance(step, int) or step < 1 or foreign_entry(copy, CHECKPOINT_FOLDER):
                continue
            folder = checkpoint_folder(run, step)
            if not folder.exists():
                folder.parent.mkdir(exist_ok=True)
                copy.rename(folder)
                log.info(f"{copy} is a copy of the checkpoint of step {step:,}: it is {folder} again")
            elif (folder / CHECKSUMS).read_bytes() == (copy / CHECKSUMS).read_bytes():
                shutil.rmtree(copy.rename(temporary_name(copy)))


def _is_run(run: Path) -> bool:
    """Tell whether `run` holds a record that training wrote (all settings, nothing else), or a checkpoint."""
    if list_checkpoints(run) or any((run / name / CHECKSUMS).is_file() for name in ("latest", "best")):
        return True
    if kind_of(run / "config.yaml") != "file":
        return False
    try:
        text = (run / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    keys = set(re.findall(r"^(\w+):", text, re.MULTILINE)) & TrainConfig.model_fields.keys()
    return "#" not in text and len(keys) > len(TrainConfig.model_fields) // 2  # a person writes fewer, with comments


def _move_aside(run: Path) -> None:
    with _locked(run):
        aside = free_name(run.absolute())
        run.rename(aside)
    run.mkdir()
    log.info(f"the earlier run in {run} was moved to {aside}")


def _recorded(run: Path, kind: type[TrainConfig]) -> TrainConfig:
    try:
        return load_config(kind, run / "config.yaml")
    except UnknownKey as problem:
        raise UserError(f"a newer Mini-LLM, or a hand, has written this record: {problem.message}", NEWER) from None
    except UserError as problem:
        raise UserError(
            f"{run / 'config.yaml'}, the record of this run's settings, is damaged: {problem.message}",
            "delete it and give the run's settings again: the checkpoints are not touched",
        ) from None


def _compare(old: TrainConfig, new: TrainConfig, run: Path) -> None:
    a, b = (_flat(c.model_dump(exclude={"resume"})) for c in (old, new))
    changed = {key: f"{key} {a[key]} -> {b[key]}" for key in a if a[key] != b[key] and key != "model.multiple_of"}
    fixed = [key for key in changed if key.startswith(("optimizer", "model.", "lora.")) and key != "model.dropout"]
    if fixed:
        raise UsageError(
            f"{run} holds a run of another model or optimizer: {', '.join(changed[key] for key in fixed)}",
            "give another out_dir=..., or --no-resume to start anew (the old run is moved aside)",
        )
    if changed:
        log.info(f"changed since the run began: {', '.join(changed.values())}")
    if changed.keys() & {"seed", "block_size", "align_documents"}:
        log.warn("the rows are cut or ordered anew: some of this epoch will be read twice, and some not")
    elif old.rows_per_step != new.rows_per_step:
        log.info(f"steps have {new.tokens_per_step:,} tokens where they had {old.tokens_per_step:,}; no row is lost")
    if changed.keys() & {"batch_size", "eval_iters", "block_size"} and _held_out(old) != _held_out(new):
        log.warn("evaluations see other held-out text than before: keep batch_size * eval_iters to compare losses")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they are given on the command line: `model.dim`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _held_out(config: TrainConfig) -> tuple[int, int]:
    return config.batch_size * config.eval_iters, config.block_size


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
