"""The best and the worst of several answers to one question, chosen by programs: no model judges another.

An answer is better that is right; of those alike, one that the model ended itself; of those alike, one that does not
repeat itself. Where the best and the worst are alike, there is nothing to learn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mini_llm.tune.checks import check_named

REPEATED = 3  # so often a run of four words makes an answer repetitive


@dataclass(frozen=True)
class Judged:
    """An answer, and what it is worth."""

    text: str
    stopped: bool  # ended by the model, not by the limit of tokens
    right: float  # of the check, 0 to 1

    @property
    def rank(self) -> tuple[float, bool, bool]:
        """What is compared; an answer that was cut off is not right, whatever it holds."""
        return self.right if self.stopped else 0.0, self.stopped, not repeats(self.text)


def judged(text: str, *, stopped: bool, check: str, reference: str) -> Judged:
    """Return an answer judged by the check of this name, given a right answer.

    Raises:
        UserError: there is no such check.
    """
    return Judged(text, stopped, float(check_named(check)(text, reference)))


def repeats(text: str) -> bool:
    """Tell whether four words in a row, or four characters of a text that is one word, come three times."""
    words = text.split() if len(text.split()) > 4 else list(text)
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    counts: dict[tuple[str, ...], int] = {}
    for four in fours:
        counts[four] = counts.get(four, 0) + 1
    return max(counts.values(), default=0) >= REPEATED


def best_and_worst(answers: Sequence[Judged]) -> tuple[Judged, Judged] | str:
    """Return the first of the best and the first of the worst, or why there are none to learn from.

    Empty answers are not looked at. The better one must have been ended by the model, and must not repeat itself.
    """
    said = [answer for answer in answers if answer.text.strip()]
    ranked = sorted(said, key=lambda answer: answer.rank, reverse=True)  # stable: the first of equals stays first
    if not ranked or ranked[0].rank[1:] != (True, True):
        return "no answer that ends and does not repeat itself"
    if ranked[0].rank == ranked[-1].rank:
        return "all right" if ranked[0].right == 1 else "all wrong" if ranked[0].right == 0 else "all alike"
    worst = next(answer for answer in said if answer.rank == ranked[-1].rank)
    return ranked[0], worst
