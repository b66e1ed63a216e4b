"""A data set from the hub: the parquet files of one split, which the hub keeps of every public set."""

from __future__ import annotations

from pathlib import Path

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.eval.task import Task
from mini_llm.hub import fetch

REVISION = "refs/convert/parquet"  # CONFIG/SPLIT/0000.parquet, made by the hub of whatever a set consists of
ELSEWHERE = "or name a folder that holds it (--data DIR; of a training eval_tasks_data=[DIR]): see docs/evaluation.md"


def download(task: Task, split: str, *, only_here: bool = False) -> list[Path]:
    """Return the files of a split, from the hub or its cache; `only_here`: from its cache alone.

    Raises:
        UserError: as `mini_llm.hub.fetch`, or there is no such split.
    """
    if not task.dataset_path:
        raise UserError(f"the task {task.task} names no data set", f"give its rows: --data {task.task}=FILE")
    config = task.dataset_name or "default"
    if not only_here:
        log.note(f"{task.task}: getting {task.dataset_path} ({config}, {split}) from the hub")
    patterns = [f"{config}/{split}/*.parquet", f"{config}/partial-{split}/*.parquet"]
    try:
        folder = fetch(f"{task.dataset_path}@{REVISION}", patterns, repo_type="dataset", only_here=only_here)
    except UserError as problem:
        hint = f"{problem.hint}\n{ELSEWHERE}" if problem.hint else ELSEWHERE
        raise type(problem)(f"cannot get {task.dataset_path} from the hub: {problem.message}", hint) from None
    found = sorted(folder.glob(f"{config}/*{split}/*.parquet"))
    if not found:
        raise UserError(f"{task.dataset_path} has no split '{split}' of '{config}' on the hub", ELSEWHERE)
    return found
