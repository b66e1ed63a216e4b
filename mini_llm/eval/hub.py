"""A data set from the hub: the parquet files of one split, which the hub keeps of every public set."""

from __future__ import annotations

from pathlib import Path

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.eval.task import Task

REVISION = "refs/convert/parquet"  # CONFIG/SPLIT/0000.parquet, made by the hub of whatever a set consists of
ELSEWHERE = "or give a folder that holds it: --data DIR; docs/evaluation.md tells where each set is"


def download(task: Task, split: str) -> list[Path]:
    """Return the files of a split, from the hub or its cache.

    Raises:
        UserError: huggingface_hub is missing, there is no network, no such set, or it is gated.
    """
    if not task.dataset_path:
        raise UserError(f"the task {task.task} names no data set", f"give its rows: --data {task.task}=FILE")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"{task.task}: its rows are not in --data, and the hub needs huggingface_hub",
            f"pip install 'mini-llm[hf]', {ELSEWHERE}",
        ) from None
    config = task.dataset_name or "default"
    log.note(f"{task.task}: getting {task.dataset_path} ({config}, {split}) from the hub")
    try:
        folder = Path(
            snapshot_download(
                task.dataset_path,
                repo_type="dataset",
                revision=REVISION,
                allow_patterns=[f"{config}/{split}/*.parquet", f"{config}/partial-{split}/*.parquet"],
            )
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{task.dataset_path} is not in the hub's cache, and the hub cannot be reached", ELSEWHERE
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise UserError(
            f"cannot get {task.dataset_path} from the hub: {reason}", f"hf auth login, {ELSEWHERE}"
        ) from None
    found = sorted(folder.glob(f"{config}/*{split}/*.parquet"))
    if not found:
        raise UserError(f"{task.dataset_path} has no split '{split}' of '{config}' on the hub", ELSEWHERE)
    return found
