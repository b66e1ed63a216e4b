"""How to pick the next token: every knob, its range and its help; the command line's options are made of this."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from mini_llm.errors import UsageError

MOST = 1e6  # of what is added to scores, or multiplies them: float32 holds this divided by the lowest temperature


def _knob(default: float, help: str) -> Any:
    """Return a field with a line of help, which the command line shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to pick the next token; the defaults are those of the command line."""

    temperature: float = _knob(0.8, "0 picks the likeliest token; higher is more daring.")
    top_k: int = _knob(0, "Keep the k likeliest tokens; 0: all.")
    top_p: float = _knob(0.95, "Keep the likeliest tokens that together reach this probability; 1: all.")
    min_p: float = _knob(0.0, "Drop tokens below this share of the likeliest one's probability; 0: none.")
    typical_p: float = _knob(1.0, "Keep the tokens nearest to the expected surprise that reach this; 1: all.")
    repetition_penalty: float = _knob(1.0, "Above 1 makes tokens that were seen, also in the prompt, less likely.")
    presence_penalty: float = _knob(0.0, "Taken from the score of each token that was written before.")
    frequency_penalty: float = _knob(0.0, "Taken from a token's score for each time that it was written before.")
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> what is added to its score
    banned_ids: Collection[int] = ()  # never chosen

    def __post_init__(self) -> None:
        """Raise UsageError for the first value out of range."""
        limits, factors = f"between -{MOST:,.0f} and {MOST:,.0f}", f"between {1 / MOST:f} and {MOST:,.0f}"
        for name, fine, rule in (
            ("temperature", 0 <= self.temperature <= MOST, f"between 0 and {MOST:,.0f}"),
            ("top_k", isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 1 / MOST <= self.repetition_penalty <= MOST, factors),
            ("presence_penalty", abs(self.presence_penalty) <= MOST, limits),
            ("frequency_penalty", abs(self.frequency_penalty) <= MOST, limits),
        ):
            if not fine:
                raise UsageError(f"{name}={getattr(self, name)} must be {rule}")
        for token_id, bias in self.logit_bias.items():
            if not (isinstance(token_id, int) and abs(bias) <= MOST):
                raise UsageError(f"logit_bias={token_id}={bias} must be a token id and a number, {limits}")

    @property
    def greedy(self) -> bool:
        """Tell whether the likeliest token is always taken: any hotter and a score divided by it overflows float32."""
        return self.temperature < 1e-5

    @property
    def looks_back(self) -> bool:
        """Tell whether the scores depend on the tokens before, or on lists of ids."""
        penalties = (self.repetition_penalty != 1, self.presence_penalty, self.frequency_penalty)
        return any(penalties) or bool(self.logit_bias) or bool(self.banned_ids)


def knobs() -> list[Field[Any]]:
    """Return the fields that are one number each, with its default and a line of help in `metadata`."""
    return [knob for knob in fields(SamplingParams) if "help" in knob.metadata]
