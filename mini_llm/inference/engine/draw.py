"""How a token was drawn: its chance under the model and after all rules, and where on the line the dart fell.

Letters: V vocabulary, C candidates: what temperature and filters leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import pieces, weigh


@dataclass(frozen=True)
class Candidate:
    """A token that might have come."""

    token_id: int
    logprob: float  # under the model, natural logarithm
    p_sampled: float  # after guide, penalties, temperature and filters; 0: ruled out
    start: float  # where its piece of the line from 0 to 1 begins; the piece is p_sampled long


@dataclass(frozen=True)
class Drawn:
    """One draw. The pieces of all tokens that were kept lie end to end, in the order of their ids."""

    chosen: Candidate
    rank: int  # 1: no token is likelier under the model
    entropy: float  # of the model's distribution, in nats
    dart: float | None  # None: the likeliest token was taken, no dart was thrown
    n_kept: int  # tokens that could have come
    candidates: list[Candidate]  # the likeliest under the model, best first


def look_at_draw(
    token_id: int, logits_V: Tensor, adjusted_V: Tensor, params: SamplingParams, dart: float, n_candidates: int
) -> Drawn:
    """Explain a draw: `logits_V` are the model's scores, `adjusted_V` those after guide and penalties.

    The line is the one that the dart was thrown at, so that what is shown is what was done; laying out all of 32,000
    tokens anew took 7 ms of a step of 2 where `top_p` is set.
    """
    scores_V = logits_V.float().cpu()
    logprobs_V = scores_V.log_softmax(-1)
    if params.greedy:
        ids_C, line_C = np.array([token_id]), np.ones(1)
    else:
        adjusted_V = adjusted_V.float().cpu()
        ids_C, line_C = pieces(adjusted_V.numpy(), weigh(adjusted_V[None], [params])[0], params)
    ends_C = np.concatenate([[0.0], line_C / line_C[-1]])

    def candidate(i: int) -> Candidate:
        place = int(ids_C.searchsorted(i))
        start, kept = float(ends_C[place]), place < len(ids_C) and ids_C[place] == i
        return Candidate(i, float(logprobs_V[i]), float(ends_C[place + 1]) - start if kept else 0.0, start)

    best = logprobs_V.topk(min(n_candidates, len(logprobs_V))).indices.tolist() if n_candidates else []
    return Drawn(
        chosen=candidate(token_id),
        rank=1 + int((scores_V > scores_V[token_id]).sum()),  # log-probabilities of near scores round to one
        entropy=float(-(logprobs_V.exp() * logprobs_V.clamp(min=-1e4)).sum()),
        dart=None if params.greedy else dart,
        n_kept=int((np.diff(ends_C) > 0).sum()),
        candidates=[candidate(i) for i in best],
    )
