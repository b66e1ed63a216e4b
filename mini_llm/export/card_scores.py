"""The scores on a model card: of each task the results of most items, how many those were, and what to doubt.

Of results files, by `mini-llm eval` or lm-eval; what a file does not say is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TaskScores:
    """What `mini-llm eval`, or lm-eval, found for a task; None: the file does not say."""

    task: str
    values: dict[str, Any]  # "acc,none" and the like, as lm-eval writes them
    items: int | None = None  # that were asked
    of: int | None = None  # that the split has
    shots: int | None = None
    at_chance: frozenset[str] = frozenset()  # measures that are not above it
    above: frozenset[str] = frozenset()  # measures that are
    overlap: int | None = None  # items that the training text holds; None: it was not searched

    @property
    def is_part(self) -> bool:
        """Whether only some of the items were asked."""
        return self.items is not None and self.of is not None and self.items < self.of


def read_scores(folder: Path, checkpoint: str) -> list[TaskScores]:
    """Return the scores of each task in a run's eval/ folder, but none of another checkpoint.

    The newest count, but a short trial does not replace results of more items.
    """
    found: dict[str, TaskScores] = {}
    for path in sorted(folder.rglob("results*.json"), key=lambda path: path.stat().st_mtime):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.get("mini_llm", {}).get("checkpoint", checkpoint) == checkpoint:
                for one in _of_file(values):
                    if one.task not in found or (found[one.task].items or 0) <= (one.items or 0):
                        found[one.task] = one
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    return [found[task] for task in sorted(found)]


def _of_file(values: dict[str, Any]) -> list[TaskScores]:
    lines = values.get("mini_llm", {}).get("lines", [])
    sizes, members, shots = (values.get(key, {}) for key in ("n-samples", "group_subtasks", "n-shot"))
    found = []
    for task, numbers in values["results"].items():
        own = [line for line in lines if line["task"] == numbers.get("alias", task)]
        asked = [sizes[name] for name in members.get(task) or [task] if name in sizes]
        found.append(
            TaskScores(
                str(task),
                numbers,
                sum(int(size["effective"]) for size in asked) if asked else None,
                sum(int(size["original"]) for size in asked) if asked else None,
                own[0]["shots"] if own else shots.get(task),
                _measures(own, above=False),
                _measures(own, above=True),
                own[0]["overlap"]["found"] if own and own[0]["overlap"] else None,
            )
        )
    return found


def _measures(lines: list[dict[str, Any]], *, above: bool) -> frozenset[str]:
    return frozenset(str(line["metric"]) for line in lines if line["above_chance"] is above)


def score_table(scores: Sequence[TaskScores]) -> str:
    """Return the section of the card; empty where nothing was evaluated."""
    rows = []
    for one in scores:
        items = "" if one.items is None else f"{one.items:,} of {one.of:,}" if one.is_part else f"{one.items:,}"
        for key, value in one.values.items():
            metric = key.partition(",")[0]
            if is_number(value) and "," in key and not metric.endswith("_stderr"):
                error = one.values.get(key.replace(metric, f"{metric}_stderr", 1))
                note = "not above chance" if metric in one.at_chance else ""
                numbers = f"{value:.4f} | {f'{error:.4f}' if is_number(error) else ''} | {note}"
                shots = "" if one.shots is None else one.shots
                rows.append(f"| {_cell(one.task)} | {items} | {shots} | {_cell(metric)} | {numbers} |")
    if not rows:
        return ""
    head = ["| task | items | examples | metric | value | stderr | |", "|---|---|---|---|---|---|---|"]
    return "\n".join(["## Evaluation\n", "By `mini-llm eval`.\n", *head, *rows])


def doubts(scores: Sequence[TaskScores]) -> list[str]:
    """Return what the numbers say against themselves."""
    found = []
    if parts := [one.task for one in scores if one.is_part]:
        found.append(f"Only some of the items were asked of {_names(parts)}: compare on the same items alone.")
    if guessed := [one.task for one in scores if one.at_chance and not one.above]:
        found.append(f"Not above chance: {_names(guessed)}. The model has not learned what these ask.")
    if seen := [f"{one.task} ({one.overlap})" for one in scores if one.overlap]:
        found.append(f"The training text holds items of {_names(seen)}: these scores may be remembered.")
    if scores and any(one.overlap is None for one in scores):
        found.append("The training text was not searched for the items of all tasks.")
    return found


def _names(names: Sequence[str]) -> str:
    return _cell(", ".join(names))


def _cell(text: str) -> str:
    """Return a name that leaves no cell of a table."""
    return plain(text).replace("|", "\\|")


def plain(text: str) -> str:
    """Return a text without control characters, HTML and code marks."""
    return "".join(c if c.isprintable() else " " for c in text).replace("<", "&lt;").replace("`", "'")


def is_number(value: Any) -> bool:
    """Tell whether a value is one that can be written with digits."""
    return isinstance(value, int | float) and not isinstance(value, bool)
