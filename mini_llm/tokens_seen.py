"""How many tokens a run had seen at a step: by its own count, for its steps may have had several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def tokens_seen(metrics: Iterable[Mapping[str, Any]], step: int, tokens_per_step: int | None) -> int | None:
    """Return the tokens seen after `step` steps; None where nobody can tell.

    Args:
        metrics: lines of metrics.jsonl.
        step: the step in question; what was counted before it counts, the steps since then had the last size.
        tokens_per_step: by the settings, which may have been others earlier; None: unknown.
    """
    counted = [(row["step"], row["tokens"]) for row in metrics if _is_count(row, "step") and _is_count(row, "tokens")]
    at, tokens = max((pair for pair in counted if pair[0] <= step), default=(0, 0))
    if at == step or tokens_per_step:
        return int(tokens + (step - at) * (tokens_per_step or 0))
    return int(tokens * step // at) if at else None


def _is_count(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
