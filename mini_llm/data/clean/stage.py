"""One stage in a process of its own: datatrove talks much and starts processes, which all end with this one.

`python -m mini_llm.data.clean.stage WORK NUMBER WORKERS local|ray`: what went wrong is a JSON line on stdout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mini_llm.data.clean.plan import Plan
from mini_llm.errors import UserError


def executor(plan: Plan, number: int, workers: int, kind: str) -> Any:
    """Return what runs stage `number`; it passes over the tasks that are done."""
    stage = plan.stages()[number]
    logs = str(plan.logs(number))
    if kind == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(stage.steps, tasks=stage.tasks, workers=workers, logging_dir=logs)
    from datatrove.executor import LocalPipelineExecutor

    # Forked from a process that has not begun to work: starting a new one would cost two seconds of imports each.
    workers = min(workers, stage.tasks)
    return LocalPipelineExecutor(stage.steps, tasks=stage.tasks, workers=workers, logging_dir=logs, start_method="fork")


def main() -> None:
    """Run it."""
    work, number, workers, kind = sys.argv[1:]
    try:
        executor(Plan.load(Path(work)), int(number), int(workers), kind).run()
    except UserError as problem:
        print(json.dumps({"message": problem.message, "hint": problem.hint}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
