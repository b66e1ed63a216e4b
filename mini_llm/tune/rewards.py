"""Rewards: what an answer is worth, between 0 and 1, by rules that anybody can check. Never by another model.

A reward is a pure function of question and answer. Whatever it leaves open is found: an answer that does not end
would earn its reward by luck and teach not to stop, so it is worth nothing. Advantages follow within a group of
answers to one question (arXiv 2402.03300), without the division by the group's deviation, which makes questions that
are nearly always or nearly never answered count most (Dr. GRPO, arXiv 2503.20783).
"""

from __future__ import annotations

from collections.abc import Sequence

from mini_llm.tune.checks import CHECKS


def reward(check: str, answer: str, reference: str, *, finished: bool) -> float:
    """Return what `check` says of a finished answer; 0 for one that was cut off."""
    return CHECKS[check](answer, reference) if finished else 0.0


def advantages(rewards: Sequence[float]) -> list[float]:
    """Return how much better than the mean of its group each answer is; exactly 0 where all are alike."""
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    return [value - mean for value in rewards]
