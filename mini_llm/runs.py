"""The newest run under runs/: what a command means when no run is named."""

from __future__ import annotations

import os
from pathlib import Path

from mini_llm.errors import UserError

HOW_TO_TRAIN = "train one first: mini-llm demo, or mini-llm train --config configs/mini-50m.yaml"


def run_name(folder: Path) -> str:
    """Return what a run is called: its folder's name; of `runs/demo/run`, as the demo's is, that of the one around."""
    around = folder.parent.name
    return around if folder.name == "run" and around not in ("", "..") else Path(os.path.abspath(folder)).name


def newest_run(holds: str, root: Path = Path("runs")) -> Path:
    """Return the folder below `root` whose file or pointer `holds` ("latest", "metrics.jsonl") was written last.

    Raises:
        UserError: there is none.
    """
    found = [*root.glob(f"*/{holds}"), *root.glob(f"*/*/{holds}")]  # the demo's runs lie one folder deeper
    if not found:
        raise UserError(f"no run in {root.resolve()}", HOW_TO_TRAIN)
    return max(found, key=lambda path: path.lstat().st_mtime).parent
