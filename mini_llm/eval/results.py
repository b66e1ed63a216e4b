"""Results as others read them: JSON in lm-eval's shape, one line an item beside it, and the table that people paste."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_llm import __version__
from mini_llm.eval import metrics
from mini_llm.eval.evaluate import TaskResult

ARROWS = {True: "↑", False: "↓"}
LOWER_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score")
HEAD = ("Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr", "Chance", "Centred", "Overlap", "")


def as_json(results: Sequence[TaskResult], *, model: str, options: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return all results in the shape of lm-eval's results file; what it does not know is under `mini_llm`."""
    found, table = {result.task.task: result for result in results}, lines(results)
    grouped = groups(results)
    values = {
        name: _numbers(result.task.task_alias or name, result.scores(), len(result.items))
        for name, result in found.items()
    }
    group_values = {name: _numbers(name, scores, n) for name, (scores, _, n) in grouped.items()}
    return {
        "results": {**group_values, **values},
        "groups": group_values,
        "group_subtasks": {
            name: [result.task.task for result in results if result.task.group == name] for name in grouped
        },
        "configs": {name: _config(result) for name, result in found.items()},
        "versions": {name: result.task.metadata.get("version") for name, result in found.items()},
        "n-shot": {name: result.questions.shots for name, result in found.items()},
        "higher_is_better": {
            name: {metric: metric not in LOWER_IS_BETTER for metric in result.task.metrics}
            for name, result in found.items()
        },
        "n-samples": {
            name: {"original": result.questions.n_rows, "effective": len(result.items)}
            for name, result in found.items()
        },
        "config": {"model": "mini-llm", "model_args": f"pretrained={model}", **options},
        "model_source": "mini-llm",
        "model_name": model,
        "date": time.time(),
        "total_evaluation_time_seconds": str(round(seconds, 3)),
        "mini_llm": {"version": __version__, "lines": table, "mean_centred": mean_centred(table)},
    }


def _numbers(alias: str, scores: dict[str, tuple[float, float | None]], n: int) -> dict[str, Any]:
    values: dict[str, Any] = {"alias": alias, "name": alias, "sample_len": n}
    for key, (value, error) in scores.items():
        metric, _, kind = key.partition(",")
        values[key] = value
        values[f"{metric}_stderr,{kind}"] = "N/A" if error is None else error
    return values


def _config(result: TaskResult) -> dict[str, Any]:
    values = result.task.model_dump(exclude_none=True)
    values |= {"num_fewshot": result.questions.shots, "data": result.questions.where, "split": result.questions.split}
    return {key: value if _is_plain(value) else str(value) for key, value in values.items()}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


Group = tuple[dict[str, tuple[float, float | None]], float, int]  # scores, chance, number of items


def groups(results: Sequence[TaskResult]) -> dict[str, Group]:
    """Return the mean of each family: over its members, or with `weight_by_size` over all items."""
    found: dict[str, Group] = {}
    names = dict.fromkeys(result.task.group for result in results if result.task.group)
    for name in names:
        members = [result for result in results if result.task.group == name]
        sizes = [len(member.items) for member in members]
        by_size = bool(members[0].task.metadata.get("weight_by_size"))
        weights = [size / sum(sizes) if by_size else 1 / len(members) for size in sizes]
        scores = [member.scores() for member in members]
        merged = {}
        for key in scores[0]:
            value = sum(weight * score[key][0] for weight, score in zip(weights, scores, strict=True))
            errors = [score[key][1] for score in scores]
            merged[key] = (value, _group_error([e for e in errors if e is not None], sizes, by_size))
        chance = sum(weight * member.chance for weight, member in zip(weights, members, strict=True))
        found[name] = (merged, chance, sum(sizes))
    return found


def _group_error(errors: list[float], sizes: list[int], by_size: bool) -> float | None:
    """Return the error of a mean of independent means, or of the pooled items, as lm-eval does."""
    if len(errors) < len(sizes):
        return None
    if not by_size:
        return math.sqrt(sum(error**2 for error in errors)) / len(errors)
    pooled = sum((n - 1) * error**2 * n for n, error in zip(sizes, errors, strict=True)) / (sum(sizes) - len(sizes))
    return math.sqrt(pooled / sum(sizes))


def lines(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """Return the rows of the table as values: a family is one row."""
    found, seen = [], set()
    grouped = groups(results)
    for result in results:
        name = result.task.group or result.task.task
        if name in seen:
            continue
        seen.add(name)
        scores, chance, n = grouped[name] if result.task.group else (result.scores(), result.chance, len(result.items))
        members = [other for other in results if (other.task.group or other.task.task) == name]
        overlap = _overlap(members)
        for key, (value, error) in sorted(scores.items()):
            metric, _, kind = key.partition(",")
            is_share = metric in metrics.PROPORTIONS
            found.append(
                {
                    "task": name if result.task.group else result.task.task_alias or name,
                    "version": result.task.metadata.get("version"),
                    "filter": kind,
                    "shots": result.questions.shots,
                    "metric": metric,
                    "value": value,
                    "stderr": error,
                    "items": n,
                    "of": sum(member.questions.n_rows for member in members),
                    "split": result.questions.split,
                    "chance": chance if is_share else None,
                    "centred": metrics.centred(value, chance) if is_share else None,
                    "above_chance": metrics.is_above_chance(value, error, chance) if is_share else None,
                    "overlap": overlap,
                }
            )
    return found


def _overlap(members: Sequence[TaskResult]) -> dict[str, int] | None:
    if any(member.overlaps is None for member in members):
        return None
    known = [found for member in members for found in (member.overlaps or {}).values()]
    n_items = sum(len(member.items) for member in members)
    return {"found": sum(known), "checked": len(known), "too_short": n_items - len(known)}


def mean_centred(table: Sequence[dict[str, Any]]) -> float | None:
    """Return the mean of the centred values of `lines`, one a task: acc_norm where there is one, else its other share.

    It is CORE's way to average (DCLM), not CORE, which has 22 tasks with examples.
    """
    best: dict[str, float] = {}
    for line in table:
        if line["centred"] is not None and (line["task"] not in best or line["metric"] == "acc_norm"):
            best[line["task"]] = line["centred"]
    return sum(best.values()) / len(best) if best else None


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return lm-eval's table, its columns first, then what it does not know: chance, centred value and overlap."""
    rows, before = [], None
    for line in table:
        first = line["task"] != before
        before = line["task"]
        note = "not above chance" if line["above_chance"] is False else ""
        if line["items"] < line["of"] and first:
            note = f"{line['items']} of {line['of']} items{', ' * bool(note)}{note}"
        error, overlap = line["stderr"], line["overlap"]
        rows.append(
            (
                line["task"] if first else "",
                str(line["version"] if line["version"] is not None else "N/A") if first else "",
                line["filter"],
                str(line["shots"]),
                line["metric"],
                ARROWS[line["metric"] not in LOWER_IS_BETTER],
                f"{line['value']:.4f}",
                "±" if error is not None else "",
                "" if error is None else f"{error:.4f}",
                "" if line["chance"] is None else f"{line['chance']:.4f}",
                "" if line["centred"] is None else f"{line['centred']:+.4f}",
                f"{overlap['found']}/{overlap['checked']}" if overlap and first else "",
                note,
            )
        )
    cells = [HEAD, *(tuple(map(_in_table, row)) for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(HEAD))]
    marks = ["-" * width if i in (0, 2, 4, 5, 7, 12) else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    shown = [cells[0], tuple(marks), *cells[1:]]
    pad = [str.ljust if mark[-1] == "-" else str.rjust for mark in marks]
    return "\n".join("|" + "|".join(pad[i](cell, widths[i]) for i, cell in enumerate(row)) + "|" for row in shown)


def _in_table(cell: str) -> str:
    """Return a cell in which a task's file can neither leave the table nor reach the terminal."""
    return "".join(c if c.isprintable() else " " for c in cell).replace("|", "\\|")


def sample_lines(result: TaskResult) -> list[dict[str, Any]]:
    """Return an object an item, as lm-eval's samples file has them."""
    shown = []
    for place, (item, responses) in enumerate(zip(result.items, result.responses, strict=True)):
        arguments = {
            f"gen_args_{i}": {"arg_0": context, "arg_1": continuation}
            for i, (context, continuation) in enumerate(item.requests)
        }
        values = {
            key.partition(",")[0]: column[place] for key, column in result.values.items() if key.endswith(",none")
        }
        row = json.dumps(item.row, sort_keys=True, default=str)
        shown.append(
            {
                "doc_id": item.number,
                "doc": json.loads(row),
                "target": item.gold,
                "arguments": arguments,
                "resps": [[response] for response in responses],
                "filtered_resps": responses,
                "filter": "none",
                "metrics": list(values),
                "doc_hash": hashlib.sha256(row.encode()).hexdigest(),
                "prompt_hash": hashlib.sha256(item.requests[0][0].encode("utf-8", "replace")).hexdigest(),
                "overlap": (result.overlaps or {}).get(item.number),
                **values,
            }
        )
    return shown


def write(folder: Path, found: dict[str, Any], results: Sequence[TaskResult], *, samples: bool) -> Path:
    """Write results_DATE.json and, with `samples`, samples_TASK_DATE.jsonl into a folder; return the first.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from mini_llm.files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    date = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(found["date"])) + f".{found['date'] % 1:.6f}"[2:]
    path = folder / f"results_{date}.json"
    write_text(path, json.dumps(found, indent=2, default=str) + "\n")
    for result in results if samples else ():
        text = "".join(json.dumps(line, default=str) + "\n" for line in sample_lines(result))
        write_text(folder / f"samples_{result.task.task}_{date}.jsonl", text)
    return path
