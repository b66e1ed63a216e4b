"""What a task's YAML may say, key by key: what no task can mean is refused before a model is asked."""

from __future__ import annotations

import re
from typing import Any

MOST_CHARACTERS = 150
MOST_MEMBERS = 1000  # of a family; MMLU has 57, BLiMP 67


def check_name(name: str) -> str:
    """Return a task's name unchanged: files are named for it.

    Raises:
        ValueError: none can be.
    """
    if not name or len(name) > MOST_CHARACTERS or not name.isprintable() or set(name) & {"/", "\\"}:
        raise ValueError(f"it must be a file's name of at most {MOST_CHARACTERS} characters, without slashes")
    return name


def check_generation(options: dict[str, Any]) -> dict[str, Any]:
    """Return `generation_kwargs` unchanged.

    Raises:
        ValueError: a stop string, the number of new tokens or the temperature is none.
    """
    until = options.get("until", [])
    if not all(isinstance(stop, str) for stop in ([until] if not isinstance(until, list) else until)):
        raise ValueError("until must be a text or a list of texts")
    n = options.get("max_gen_toks", 1)
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError("max_gen_toks must be a whole number, 1 or more")
    try:
        float(options.get("temperature") or 0)  # YAML takes 1e-5 for a text
    except (TypeError, ValueError):
        raise ValueError("temperature must be a number") from None
    return options


def check_filters(filters: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return `filter_list` unchanged.

    Raises:
        ValueError: a filter is no list of steps, or a step's pattern or group is none.
    """
    for entry in filters or []:
        steps = entry.get("filter", [])
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise ValueError("filter must be a list of steps, `- function: NAME`")
        for step in steps:
            if not isinstance(step.get("function"), str):
                raise ValueError("a filter's step must name its function")
            _check_pattern(step.get("regex_pattern", ""))
            if not isinstance(step.get("group_select", 0), int):
                raise ValueError("group_select must be a whole number")
    return filters


def check_measures(measures: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return `metric_list` unchanged.

    Raises:
        ValueError: a measure has no name, or ignores what is no regular expression.
    """
    for entry in measures or []:
        if not isinstance(entry.get("metric"), str):
            raise ValueError("each entry must name its metric")
        patterns = entry.get("regexes_to_ignore") or []
        if not isinstance(patterns, list):
            raise ValueError("regexes_to_ignore must be a list")
        for pattern in patterns:
            _check_pattern(pattern)
    return measures


def check_members(members: Any) -> list[str]:
    """Return the names of a family's members.

    Raises:
        ValueError: they are no list of names, or too many.
    """
    if not isinstance(members, list) or not 1 <= len(members) <= MOST_MEMBERS:
        raise ValueError(f"members must be a list of 1 to {MOST_MEMBERS:,} names")
    names = [str(member) for member in members if isinstance(member, (str, int))]
    if len(names) < len(members) or len(set(names)) < len(names):
        raise ValueError("each of members must be a name of its own")
    return names


def _check_pattern(pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as problem:
        raise ValueError(f"{str(pattern)[:60]!r} is no regular expression: {problem}") from None
