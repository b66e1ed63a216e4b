"""From scores to one token: penalise, heat, cut the tail, throw a dart.

Pure functions on the last axis: scores (V,) or (B, V) in, the same shape out, with -inf where a token is ruled out.
Letters: B batch, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to pick the next token; the defaults are those of the command line."""

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int = 0  # keep the k likeliest; 0: all
    top_p: float = 0.95  # keep the likeliest that together reach this probability; 1: all
    min_p: float = 0.0  # drop tokens below this share of the likeliest one's probability; 0: none
    repetition_penalty: float = 1.0  # above 1: tokens that were seen become less likely

    def __post_init__(self) -> None:
        """Raise UsageError for the first value out of range."""
        for name, fine, rule in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
        ):
            if not fine:
                raise UsageError(f"{name}={getattr(self, name)} must be {rule}")


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in `seen` (bool, shape of `logits`) less likely, whatever the sign of their score.

    Source: CTRL, arXiv 1909.05858.
    """
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k highest scores; a tie with the k-th stays too."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus: the fewest tokens whose probabilities sum to `p` or more. Source: arXiv 1904.09751."""
    probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
    mass_before = probabilities.cumsum(-1) - probabilities
    outside = torch.empty_like(mass_before, dtype=torch.bool).scatter_(-1, order, mass_before >= p)
    return logits.masked_fill(outside, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least `p` times as likely as the likeliest. Source: arXiv 2407.01082."""
    floor = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < floor, -math.inf)


def shape_logits(logits: Tensor, params: SamplingParams) -> Tensor:
    """Apply temperature (above 0), then each filter that is on, and return float32 scores."""
    logits = logits.float() / params.temperature
    if params.top_k:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p < 1:
        logits = keep_top_p(logits, params.top_p)
    if params.min_p:
        logits = keep_min_p(logits, params.min_p)
    return logits


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator, seen: Tensor | None = None) -> Tensor:
    """Pick one token id from finite scores (V,) or (B, V); returns shape () or (B,), int64.

    Temperature 0 takes the highest score (the first of equals) and leaves `generator` as it is. Otherwise one number is
    drawn for each row: lay the probabilities end to end and see where on that line it falls. This, and `generator`,
    live on the CPU: a seed means the same on every device.

    Args:
        seen: bool, shape of `logits`: which tokens the repetition penalty is for.
    """
    logits = logits.float()
    if seen is not None and params.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, params.repetition_penalty)
    if params.temperature < 1e-5:  # any lower and a score divided by it overflows float32
        return logits.argmax(-1)
    line = shape_logits(logits, params).softmax(-1).cpu().cumsum(-1, dtype=torch.float64)
    dart = torch.rand((*logits.shape[:-1], 1), generator=generator, dtype=torch.float64)
    # `right` steps over tokens of probability 0: they take no room on the line.
    return torch.searchsorted(line, dart * line[..., -1:], right=True)[..., 0]
