"""A run's numbers as arrays: metrics.jsonl and timing.jsonl, read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.errors import UserError
from mini_llm.runs import run_name
from mini_llm.user_files import above, refuse_special

MOST = 1e30  # of a step or a value
HOW_TO_TRAIN = "give a run folder, as `mini-llm train` and `mini-llm demo` write them"


@dataclass(frozen=True)
class Curve:
    """One quantity against the step at which it was measured; both float64 [n], steps rising."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Run:
    """What there is to see of one run. Losses are nats per token; curves that were not recorded are empty."""

    name: str
    folder: Path
    tokens_per_step: float  # on average
    tokens: Curve
    loss: Curve
    held_out: Curve
    bits_per_byte: Curve
    learning_rate: Curve
    gradient_norm: Curve
    tokens_per_second: Curve
    tasks: dict[str, Curve] = field(default_factory=dict)  # shares of right answers, by task

    def best(self) -> int | None:
        """Return the place of the lowest held-out loss."""
        return int(np.argmin(self.held_out.values)) if len(self.held_out) else None

    def tokens_at(self, steps: np.ndarray) -> np.ndarray:
        """Return how many tokens each step had seen: steps need not all have had the same size."""
        if not len(self.tokens):
            return steps * self.tokens_per_step
        known, seen = (np.concatenate([[0.0], part]) for part in (self.tokens.steps, self.tokens.values))
        last = (seen[-1] - seen[-2]) / max(1.0, known[-1] - known[-2])  # an evaluation may come after the last line
        return np.interp(steps, known, seen) + last * np.maximum(0.0, steps - known[-1])

    @property
    def has_even_steps(self) -> bool:
        """Tell whether all steps had the same number of tokens."""
        return bool(np.allclose(self.tokens.values, self.tokens.steps * self.tokens_per_step))

    def summary(self) -> dict[str, Any]:
        """Return the numbers that a picture shows, for programs."""
        best = self.best()
        found: dict[str, Any] = {
            "run": str(self.folder),
            "steps": int(self.loss.steps[-1]),
            "tokens": round(float(self.tokens_at(self.loss.steps[-1:])[0])),
            "loss": float(self.loss.values[-1]),
        }
        if best is not None:
            found |= {"best_step": int(self.held_out.steps[best]), "best_val_loss": float(self.held_out.values[best])}
            bits = dict(zip(self.bits_per_byte.steps, self.bits_per_byte.values, strict=True))
            if self.held_out.steps[best] in bits:
                found["best_val_bits_per_byte"] = float(bits[self.held_out.steps[best]])
        if len(self.tokens_per_second):
            found["tokens_per_second"] = float(np.median(self.tokens_per_second.values))
        if self.tasks:
            found["tasks"] = {name: float(curve.values[-1]) for name, curve in self.tasks.items()}
        return found


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs of some folders; where two have one name, the folders' paths become the names.

    Raises:
        UserError: a folder is missing or holds no run, or its metrics are damaged; the line is named.
    """
    folders = [_run_folder(path) for path in paths]
    names = [run_name(folder) for folder in folders]
    if len({*names}) < len(names):
        names = [str(path) for path in paths]
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _run_folder(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"no such run: {path}", above(path, HOW_TO_TRAIN))
    # The run itself; the demo's folder, which holds it; a checkpoint inside.
    for folder in (path, path / "run", path.resolve().parent.parent):
        if (folder / "metrics.jsonl").is_file():
            return folder
    raise UserError(f"no metrics.jsonl in {path}", HOW_TO_TRAIN)


def _read_run(folder: Path, name: str) -> Run:
    metrics, timing = _read_lines(folder / "metrics.jsonl"), _read_lines(folder / "timing.jsonl")
    loss, tokens = (_curve(metrics, key, folder / "metrics.jsonl") for key in ("loss", "tokens"))
    if not len(loss):
        raise UserError(f"{folder / 'metrics.jsonl'} has no training step yet", "wait for the first, or train on")
    return Run(
        name=name,
        folder=folder,
        tokens_per_step=tokens.values[-1] / max(1.0, tokens.steps[-1]) if len(tokens) else 1.0,
        tokens=tokens,
        loss=loss,
        held_out=_curve(metrics, "val_loss", folder / "metrics.jsonl"),
        bits_per_byte=_curve(metrics, "val_bits_per_byte", folder / "metrics.jsonl"),
        learning_rate=_curve(metrics, "lr", folder / "metrics.jsonl"),
        gradient_norm=_curve(metrics, "grad_norm", folder / "metrics.jsonl"),
        tokens_per_second=_curve(timing, "tokens_per_second", folder / "timing.jsonl"),
        tasks=_tasks(metrics, folder / "metrics.jsonl"),
    )


def _tasks(rows: list[tuple[int, dict[str, Any]]], path: Path) -> dict[str, Curve]:
    """Return a curve for each task that was asked while training: acc_norm where it has one, else acc."""
    keys = dict.fromkeys(key for _, row in rows for key in row if key.startswith("tasks/"))
    best: dict[str, str] = {}
    for key in keys:
        _, name, *metric = key.split("/")
        if metric in (["acc"], ["acc_norm"]) and best.get(name, "acc") != "acc_norm":
            best[name] = metric[0]
    return {name: _curve(rows, f"tasks/{name}/{metric}", path) for name, metric in best.items()}


def _read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, object). A last line that is half written, as a running run's may be, is left out."""
    refuse_special(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"cannot read {path}: {problem}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
            if not isinstance(row, dict):
                raise ValueError
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is damaged: it is no JSON object", "remove the line") from None
        rows.append((number, row))
    return rows


def _curve(rows: list[tuple[int, dict[str, Any]]], key: str, path: Path) -> Curve:
    points: dict[float, float] = {}
    for number, row in rows:
        if row.get(key) is None:  # null: an infinite gradient norm, which float16 has now and then
            continue
        step: Any = row.get("step")
        value: Any = row[key]
        for name, found in (("step", step), (key, value)):
            if isinstance(found, bool) or not isinstance(found, (int, float)):
                raise UserError(f"{path}, line {number}: '{name}' is {json.dumps(found)[:50]}, not a number")
            if found > MOST and found != math.inf:  # an integer of 400 digits is no float, and no picture is so high
                raise UserError(f"{path}, line {number}: '{name}' is beyond {MOST:g}", "remove the line")
        if math.isfinite(value) and math.isfinite(step):
            points[float(step)] = float(value)
    steps = sorted(points)
    return Curve(np.array(steps), np.array([points[step] for step in steps]))


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a twentieth of the points, centred, so that the curve does not lag behind.

    At the steep beginning the window shrinks on both sides alike; at the flat end it only loses what is not there.
    """
    n = len(values)
    places = np.arange(n)
    before = np.minimum(places, max(1, n // 40))
    after = np.minimum(n - 1 - places, before)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[places + after + 1] - sums[places - before]) / (before + after + 1)
