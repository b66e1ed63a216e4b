"""What counts: right or wrong of an item, the mean over all with its error, and how far above chance that is.

acc: the likeliest choice. acc_norm: the likeliest per *character* of the choice (Python's `len`, no delimiter), as
lm-eval; acc_bytes per byte. Other programs divide by tokens under the same name: their numbers differ.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from mini_llm.eval.items import Item
from mini_llm.eval.scorer import Score
from mini_llm.eval.task import Task

ABOVE = 2.0  # standard errors above chance that count as above it
PROPORTIONS = ("acc", "acc_norm", "acc_bytes", "exact_match")


def judge_choice(item: Item, scores: Sequence[Score]) -> dict[str, Any]:
    """Return every metric of a multiple-choice item; the first of equals wins."""
    logs = np.array([score.loglikelihood for score in scores])
    characters = np.array([len(choice) for choice in item.choices], dtype=float)
    n_bytes = np.array([len(choice.encode("utf-8", "replace")) for choice in item.choices], dtype=float)
    golds = item.gold if isinstance(item.gold, list) else [item.gold]
    picked = {"acc": int(logs.argmax()), "acc_norm": int((logs / characters).argmax())}
    picked["acc_bytes"] = int((logs / n_bytes).argmax())
    found: dict[str, Any] = {name: float(choice in golds) for name, choice in picked.items()}
    found["exact_match"] = float(any(scores[gold].is_greedy for gold in golds))
    probabilities = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    found["brier_score"] = float(((probabilities - np.eye(len(logs))[golds[0]]) ** 2).sum())
    found["mcc"] = found["f1"] = (golds[0], picked["acc"])
    return found


def judge_continuation(score: Score) -> dict[str, Any]:
    """Return the metrics of a continuation: whether all of it is the likeliest, and its log-likelihood."""
    return {"acc": float(score.is_greedy), "perplexity": score.loglikelihood}


def judge_text(text: str, loglikelihood: float) -> dict[str, Any]:
    """Return a text's log-likelihood with its number of words and of bytes, for the three ways to divide it."""
    words, n_bytes = len(re.split(r"\s+", text)), len(text.encode("utf-8", "replace"))
    return {
        "word_perplexity": (loglikelihood, words),
        "byte_perplexity": (loglikelihood, n_bytes),
        "bits_per_byte": (loglikelihood, n_bytes),
    }


def judge_written(task: Task, item: Item, written: str) -> dict[str, Any]:
    """Return whether what was written equals the gold text, under the metric's own rules for case and signs."""
    rules = next((m for m in task.metric_list or [] if m.get("metric") == "exact_match"), {})
    golds = item.gold if isinstance(item.gold, list) else [item.gold]
    return {"exact_match": float(any(_plain(written, rules) == _plain(str(gold), rules) for gold in golds))}


def _plain(text: str, rules: dict[str, Any]) -> str:
    for pattern in rules.get("regexes_to_ignore") or ():
        text = re.sub(pattern, "", text)
    if rules.get("ignore_case"):
        text = text.lower()
    left_out = string.punctuation * bool(rules.get("ignore_punctuation")) + string.digits * bool(
        rules.get("ignore_numbers")
    )
    return text.translate(str.maketrans("", "", left_out))


def filtered(written: str, steps: Sequence[dict[str, Any]]) -> str:
    """Return what a filter of lm-eval's `filter_list` makes of a written text."""
    for step in steps:
        kind = step.get("function")
        if kind == "regex":
            matches = re.findall(step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)"), written)
            place = step.get("group_select", 0)
            match = matches[place] if -len(matches) <= place < len(matches) else ""
            match = next((part for part in match if part), "") if isinstance(match, tuple) else match
            written = match.strip() if match else str(step.get("fallback", "[invalid]"))
        elif kind == "remove_whitespace":
            written = written.strip()
        elif kind in ("lowercase", "uppercase"):
            written = written.lower() if kind == "lowercase" else written.upper()
    return written


FILTERS = ("regex", "remove_whitespace", "lowercase", "uppercase", "take_first")


def aggregate(metric: str, values: Sequence[Any], how: str | None = None) -> tuple[float, float | None]:
    """Return a metric over all items, and its standard error where there is one.

    A mean has s / sqrt(n), with n - 1 in s; a perplexity that of the mean times itself (the delta method).
    """
    n = len(values)
    if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        total = sum(value for value, _ in values) / max(1, sum(weight for _, weight in values))
        return (-total / math.log(2) if metric == "bits_per_byte" else _exp(-total)), None
    if metric in ("mcc", "f1"):
        return _of_classes(metric, [gold for gold, _ in values], [picked for _, picked in values]), None
    mean = sum(values) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else None
    if metric == "perplexity" or how == "perplexity":
        perplexity = _exp(-mean)
        return perplexity, None if error is None else perplexity * error
    return mean, error


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _of_classes(metric: str, golds: list[int], picked: list[int]) -> float:
    """Return Matthews' correlation or the best F1 of two classes."""
    truth, guess = np.array(golds), np.array(picked)
    if metric == "mcc":
        t, g = truth - truth.mean(), guess - guess.mean()
        size = math.sqrt(float((t * t).sum() * (g * g).sum()))
        return float((t * g).sum()) / size if size else 0.0
    right = float(((truth == 1) & (guess == 1)).sum())
    asked = float((truth == 1).sum() + (guess == 1).sum())
    return 2 * right / asked if asked else 0.0


def chance_of(task: Task, items: Sequence[Item]) -> float:
    """Return what a guess gets: one over the number of choices, or with `chance: majority` always the same answer."""
    if task.output_type != "multiple_choice" or not items:
        return 0.0
    if task.metadata.get("chance") == "majority":
        golds = [item.gold for item in items]
        return max(golds.count(gold) for gold in set(golds)) / len(golds)
    shares = [(len(item.gold) if isinstance(item.gold, list) else 1) / len(item.choices) for item in items]
    return sum(shares) / len(shares)


def centred(value: float, chance: float) -> float:
    """Return (value - chance) / (1 - chance): 0 is a guess, 1 is all right (DCLM, arXiv 2406.11794)."""
    return (value - chance) / (1 - chance) if chance < 1 else 0.0


def is_above_chance(value: float, error: float | None, chance: float) -> bool:
    """Tell whether a share is above chance by two standard errors."""
    return error is not None and value > chance and value - chance >= ABOVE * error
