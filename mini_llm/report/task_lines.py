"""The table of tasks from all that a run's `eval/` holds: of each task the newest lines, of the last checkpoint."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from mini_llm.eval.run import read_results

NUMBERS = ("value", "items", "of", "shots")
PERHAPS = ("stderr", "chance", "centred")  # numbers or nothing


def read_lines(folder: Path, checkpoint: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """Return the lines as `eval` keeps them, each with its `limit`, and the checkpoint they are of if it is another.

    A short trial does not replace lines of more items. Where nothing is of `checkpoint`, the newest results count.
    """
    found = [one for one in read_results(folder) if any(map(_is_line, one["mini_llm"]["lines"]))]
    same = [one for one in found if one["mini_llm"].get("checkpoint") in (None, checkpoint)] or found[-1:]
    tasks: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in same:
        config = one.get("config")
        limit = config.get("limit") if isinstance(config, dict) else None
        lines = [line | {"limit": limit} for line in one["mini_llm"]["lines"] if _is_line(line)]
        for key in dict.fromkeys((line["task"], line["shots"]) for line in lines):
            of_task = [line for line in lines if (line["task"], line["shots"]) == key]
            if key not in tasks or tasks[key][0]["items"] <= of_task[0]["items"]:
                tasks[key] = of_task
    asked_of = same[-1]["mini_llm"].get("checkpoint") if same else None
    return list(itertools.chain(*tasks.values())), None if asked_of in (None, checkpoint) else str(asked_of)


def is_finite(value: Any) -> bool:
    """Tell whether a value is a number that can be shown."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_line(line: Any) -> bool:
    """Tell whether a line is one that `eval` writes: who edits the file loses the line, not the page."""
    if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in ("task", "metric", "filter")):
        return False
    overlap = line.get("overlap", ())
    return (
        all(is_finite(line.get(key)) for key in NUMBERS)
        and all(line.get(key, "none") is None or is_finite(line.get(key)) for key in PERHAPS)
        and line.get("above_chance", "none") in (True, False, None)
        and (overlap is None or (isinstance(overlap, dict) and all(map(is_finite, overlap.values()))))
        and (overlap is None or {"found", "checked"} <= overlap.keys())
    )
