"""How likely the model held tokens, before temperature and filters: of what it wrote, and of what it was given to read.

Letters: M rows of scores, V vocabulary, N likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Logprob:
    """How likely the model held a token: natural logarithms."""

    token_id: int
    logprob: float
    likeliest: list[tuple[int, float]]  # (id, logprob), best first

    def of(self, n_likeliest: int | None) -> Logprob:
        """Return the same with no more than `n_likeliest` of the likeliest."""
        return replace(self, likeliest=self.likeliest[:n_likeliest])


def logprobs_of(token_ids: Sequence[int], logits_MV: Tensor, n_likeliest: int) -> list[Logprob]:
    """Return each row's token's log-probability and its `n_likeliest` tokens', under the model's plain softmax.

    Both are read from one softmax: where the token is the likeliest one, the two numbers are the same float.
    """
    logprobs_MV = logits_MV.float().log_softmax(-1)
    chosen_M = logprobs_MV.gather(-1, torch.tensor(token_ids, device=logprobs_MV.device)[:, None])[:, 0].tolist()
    n_likeliest = min(n_likeliest, logprobs_MV.shape[-1])
    if n_likeliest == 0:
        return [Logprob(*pair, []) for pair in zip(token_ids, chosen_M, strict=True)]
    best = logprobs_MV.topk(n_likeliest)
    likeliest_MN = [
        list(zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return [Logprob(*row) for row in zip(token_ids, chosen_M, likeliest_MN, strict=True)]
