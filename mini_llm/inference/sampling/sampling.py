"""From scores to one token: penalise, heat, cut the tail, throw a dart.

Pure functions on the last axis: scores (V,) or (B, V) in, the same shape out, with -inf where a token is ruled out.
Where a number may differ from row to row, it may be a tensor (B, 1). What a row gets never depends on the other rows.
Letters: B batch, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm.inference.sampling.params import SamplingParams

ALL = 2.0  # no sum of probabilities reaches this, however it is rounded

Number = float | Tensor


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in `seen` (bool, shape of `logits`) less likely, whatever the sign of their score.

    Source: CTRL, arXiv 1909.05858.
    """
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def penalize_written(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Take `presence` from tokens that were written, and `frequency` for each time; `counts` has the shape of `logits`.

    Source: the reference of OpenAI's API.
    """
    return logits - presence * (counts > 0).float() - frequency * counts


def keep_top_k(logits: Tensor, k: int | Tensor) -> Tensor:
    """Keep the k highest scores; a tie with the k-th stays too."""
    if isinstance(k, int):
        kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    else:  # on a GPU nothing may ask the host how large k is
        k = k.clamp(max=logits.shape[-1])
        most = int(k.max()) if logits.device.type == "cpu" else logits.shape[-1]
        kth = logits.topk(most).values.gather(-1, k - 1)
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: Tensor, p: Number) -> Tensor:
    """Keep the nucleus: the fewest tokens whose probabilities sum to `p` or more; of equals, the lower id goes first.

    Source: arXiv 1904.09751.
    """
    probabilities = logits.softmax(-1)
    return _keep_fewest(logits, probabilities, probabilities, p)


def keep_min_p(logits: Tensor, p: Number) -> Tensor:
    """Keep tokens at least `p` times as likely as the likeliest. Source: arXiv 2407.01082."""
    floor = logits.amax(-1, keepdim=True) + (p.log() if isinstance(p, Tensor) else math.log(p))
    return logits.masked_fill(logits < floor, -math.inf)


def keep_typical(logits: Tensor, p: Number) -> Tensor:
    """Keep the fewest tokens that reach `p`, those first whose surprise is nearest to the expected one.

    Source: arXiv 2202.00666.
    """
    surprise = -logits.log_softmax(-1, dtype=torch.float64)  # equally near ones must not part by rounding
    probabilities = (-surprise).exp()
    expected = torch.where(probabilities > 0, surprise * probabilities, 0.0).sum(-1, keepdim=True)
    return _keep_fewest(logits, probabilities, -(surprise - expected).abs(), p)


def _keep_fewest(logits: Tensor, probabilities: Tensor, rank: Tensor, p: Number) -> Tensor:
    """Keep the tokens of highest `rank` until their probabilities reach `p`; of equals, the lower id goes first."""
    order = rank.sort(descending=True, stable=True, dim=-1).indices
    mass = probabilities.gather(-1, order)
    line = mass.cumsum(-1, dtype=torch.float64)  # in float32 it is wrong by whole tokens of a flat row
    beyond = line - mass >= p * line[..., -1:]
    beyond[..., 0] = False  # one always stays
    outside = torch.empty_like(mass, dtype=torch.bool).scatter_(-1, order, beyond)
    return logits.masked_fill(outside, -math.inf)


@dataclass(frozen=True)
class RowParams:
    """The settings of B requests side by side: tensors (B, 1), or None where no row needs the step."""

    temperature: Tensor
    greedy: Tensor
    all_greedy: bool
    any_greedy: bool
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    typical_p: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[SamplingParams], device: torch.device | str = "cpu") -> "RowParams":
        """Lay the settings of all rows side by side; where a row does not use a filter, its number does nothing."""

        def column(values: list[float], off: float, dtype: torch.dtype = torch.float32) -> Tensor | None:
            used = any(value != off for value in values)
            return torch.tensor(values, device=device, dtype=dtype)[:, None] if used else None

        temperature = torch.tensor([1.0 if row.greedy else row.temperature for row in rows], device=device)
        return cls(
            temperature=temperature[:, None],
            greedy=torch.tensor([row.greedy for row in rows], device=device),
            all_greedy=all(row.greedy for row in rows),
            any_greedy=any(row.greedy for row in rows),
            top_k=column([min(row.top_k or 2**31, 2**31) for row in rows], 2**31, torch.long),
            top_p=column([row.top_p if row.top_p < 1 else ALL for row in rows], ALL),
            min_p=column([row.min_p for row in rows], 0.0),
            typical_p=column([row.typical_p if row.typical_p < 1 else ALL for row in rows], ALL),
        )


def shape_logits(logits: Tensor, params: SamplingParams | RowParams) -> Tensor:
    """Apply temperature (above 0), then each filter that is on, and return float32 scores."""
    if isinstance(params, SamplingParams):
        params = RowParams.of([params], logits.device)
        return shape_logits(logits.reshape(-1, logits.shape[-1]), params).reshape(logits.shape)
    logits = logits.float() / params.temperature
    if params.top_k is not None:
        logits = keep_top_k(logits, params.top_k.expand(len(logits), 1))
    if params.top_p is not None:
        logits = keep_top_p(logits, params.top_p)
    if params.min_p is not None:
        logits = keep_min_p(logits, params.min_p)
    if params.typical_p is not None:
        logits = keep_typical(logits, params.typical_p)
    return logits


def sample(logits_BV: Tensor, params: RowParams, darts_B: Tensor) -> Tensor:
    """Pick one token id from each row of finite scores; returns int64 (B,).

    Temperature 0 takes the highest score (the first of equals). Otherwise lay the probabilities end to end and see
    where on that line the row's dart, a number from 0 to below 1 (float64), falls.
    """
    logits_BV = logits_BV.float()
    if params.all_greedy:
        return logits_BV.argmax(-1)
    line_BV = shape_logits(logits_BV, params).softmax(-1).cumsum(-1, dtype=torch.float64)
    # `right` steps over tokens of probability 0: they take no room on the line.
    drawn_B = torch.searchsorted(line_BV, darts_B[:, None] * line_BV[:, -1:], right=True)[:, 0]
    return torch.where(params.greedy, logits_BV.argmax(-1), drawn_B) if params.any_greedy else drawn_B
