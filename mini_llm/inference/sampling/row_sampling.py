"""One text's token on a CPU: what `sampling.py` says, on the few scores that matter.

Most of 32,000 scores are out of reach: after `top_k` or the nucleus (`top_p`) some dozens are left, and all that
follows is done on these. NumPy is the faster tool here: after a step all weights have gone through the caches, and each
call of torch costs more than what it computes. Letters: V vocabulary, C candidates.
"""

from __future__ import annotations

import numpy as np
import torch

from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.sampling import keep_min_p, keep_typical

FLOORS = (1e-3, 1e-5, 0.0)  # so likely, beside the likeliest, is what the nucleus is looked for among


def pick_one(logits_V: np.ndarray, params: SamplingParams, dart: float) -> int:
    """Return the token that `sample` would pick from finite scores (float32)."""
    if params.greedy:
        return int(logits_V.argmax())
    ids_C, line_C = pieces(logits_V, params)
    # `right` steps over tokens of probability 0: they take no room on the line.
    return int(ids_C[line_C.searchsorted(dart * line_C[-1], side="right")])


def pieces(logits_V: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that temperature and filters leave, ascending, and where each one's piece of the line ends."""
    scores_V = logits_V / np.float32(params.temperature)
    ids_C = np.arange(len(scores_V))
    if 0 < params.top_k < len(scores_V):
        ids_C = np.flatnonzero(scores_V >= np.partition(scores_V, -params.top_k)[-params.top_k])  # with all its equals
    if params.top_p < 1:
        weights_C = np.exp(scores_V[ids_C] - scores_V.max())
        ids_C = ids_C[nucleus(weights_C, rounded(params.top_p))]
    scores_C = scores_V[ids_C]
    if params.min_p:
        scores_C = keep_min_p(torch.from_numpy(scores_C), params.min_p).numpy()
    if params.typical_p < 1:
        scores_C = keep_typical(torch.from_numpy(scores_C), rounded(params.typical_p)).numpy()
    return ids_C, np.exp(scores_C - scores_C.max()).astype(np.float64).cumsum()


def rounded(p: float) -> float:
    """Return `p` as `RowParams` holds it: of a flat row a part of 1e-8 decides whether one token more belongs to it."""
    return float(np.float32(p))


def nucleus(weights_V: np.ndarray, p: float) -> np.ndarray:
    """Return the ids of the fewest tokens that hold the share `p` of all weights, ascending; the largest weight is 1.

    Of equals, the lower id goes first. Looked for among the likeliest alone, as long as these are enough.
    """
    enough = p * weights_V.sum(dtype=np.float64)
    for floor in FLOORS:
        falling_C = np.sort(weights_V[weights_V >= floor])[::-1].astype(np.float64)
        before_C = falling_C.cumsum() - falling_C
        n = max(1, int(before_C.searchsorted(enough)))  # those before which it is not yet enough
        if n < len(falling_C):
            break
    lowest = np.float32(falling_C[n - 1])
    ids_C = np.flatnonzero(weights_V >= lowest)
    surplus = len(ids_C) - n  # others that are equal to the lowest
    if surplus:
        ids_C = np.setdiff1d(ids_C, np.flatnonzero(weights_V == lowest)[-surplus:], assume_unique=True)
    return ids_C
