"""Why this token: what the model held of it, what the settings made of that, and where the dart fell.

    why = explain(logits_V, 42, SamplingParams(temperature=0.8), dart=dart(seed, n))
    why.chosen.p, why.chosen.p_sampled, why.rank, why.entropy, why.likeliest

The line is the one that `pick_one` throws at, by the same function. Letters: V vocabulary, C tokens that may come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import line_of


@dataclass(frozen=True)
class Candidate:
    """A token that might have come.

    `p` is its probability under the model alone, `p_sampled` after penalties, temperature and filters: 0 where these
    rule it out. From `start` to below `end` it lies on the line, which goes from 0 to 1 and holds all tokens by id.
    """

    token_id: int
    p: float
    p_sampled: float
    start: float
    end: float

    @property
    def kept(self) -> bool:
        """Whether it might have come at all."""
        return self.p_sampled > 0


@dataclass(frozen=True)
class Why:
    """How one token was chosen."""

    chosen: Candidate
    rank: int  # of the chosen one under the model: 1 is the likeliest; equals count by id
    entropy: float  # of the model's probabilities, in nats: 0 is sure, ln V knows nothing
    dart: float | None  # where on the line it fell; None: temperature 0 throws none
    n_kept: int  # tokens that might have come
    likeliest: list[Candidate]  # under the model, best first


def explain(
    logits_V: Tensor,
    token_id: int,
    sampling: SamplingParams,
    dart: float,
    *,
    adjusted_V: Tensor | None = None,
    n_likeliest: int = 10,
) -> Why:
    """Return why `token_id` was chosen.

    Args:
        logits_V: the model's scores.
        token_id: the token that was chosen.
        sampling: how it was chosen.
        dart: the number that was thrown, from 0 to below 1; of no matter at temperature 0.
        adjusted_V: the scores after a guide, penalties, biases and bans, where there are some (`History.adjust`).
        n_likeliest: so many candidates are told of, besides the chosen one.
    """
    scores_V = logits_V.detach().double().cpu()
    logprobs_V = scores_V.log_softmax(-1).numpy()
    p_V = np.exp(logprobs_V)
    left_V = (logits_V if adjusted_V is None else adjusted_V).detach().float().cpu()
    if sampling.greedy:
        ids_C, line_C = np.array([int(left_V.numpy().argmax())]), np.ones(1)
    else:
        ids_C, line_C = line_of(left_V, sampling)
    ends_C = line_C / line_C[-1]
    starts_C = np.concatenate([[0.0], ends_C[:-1]])

    def candidate(i: int) -> Candidate:
        place = int(ids_C.searchsorted(i))
        if place == len(ids_C) or ids_C[place] != i:  # ruled out: a stretch without length, where it would lie
            start = end = float(starts_C[place]) if place < len(ids_C) else 1.0
        else:
            start, end = float(starts_C[place]), float(ends_C[place])
        return Candidate(i, float(p_V[i]), end - start, start, end)

    order = np.argsort(-logprobs_V, kind="stable")
    return Why(
        chosen=candidate(token_id),
        rank=1 + int(np.flatnonzero(order == token_id)[0]),
        entropy=float(-(p_V * np.where(p_V > 0, logprobs_V, 0.0)).sum()),
        dart=None if sampling.greedy else dart,
        n_kept=int((ends_C > starts_C).sum()),
        likeliest=[candidate(int(i)) for i in order[:n_likeliest]],
    )
