"""Each text's token on a CPU: what `sampling.py` says, on the few scores that matter.

Most of 32,000 scores are out of reach: after `top_k` or the nucleus (`top_p`) some dozens are left, and all that
follows is done on these, text by text. NumPy is the faster tool there: after a step all weights have gone through the
caches, and each call of torch costs more than what it computes. Letters: M texts, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.sampling import keep_min_p, keep_typical

FLOORS = (1e-4, 1e-6, 0.0)  # so likely, beside the likeliest, is what the nucleus is looked for among
AT_ONCE = 8  # texts: what is written of more leaves the inner caches, and takes new memory at each step


def pick_each(logits_MV: Tensor, params: Sequence[SamplingParams], darts: Sequence[float]) -> list[int]:
    """Return the token that `sample` would pick of each row of finite scores, in host memory."""
    chosen: list[int] = []
    for first in range(0, len(params), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        logits_MV_, own = logits_MV[some].float(), params[some]
        weights_MV = None if all(each.greedy for each in own) else weigh(logits_MV_, own)
        for row, logits_V in enumerate(logits_MV_.numpy()):
            weights_V = None if weights_MV is None or own[row].greedy else weights_MV[row]
            chosen.append(_pick(logits_V, weights_V, own[row], darts[first + row]))
    return chosen


def weigh(logits_MV: Tensor, params: Sequence[SamplingParams]) -> np.ndarray:
    """Return how likely temperature alone leaves each token of each row, (M, V) float32.

    Rows together, because e^x of 32,000 scores takes NumPy 90 us and torch, with two threads, 25.
    """
    heat_M1 = np.array([1.0 if own.greedy else own.temperature for own in params], np.float32)[:, None]
    return torch.from_numpy(logits_MV.numpy() / heat_M1).softmax(-1).numpy()


def _pick(logits_V: np.ndarray, weights_V: np.ndarray | None, params: SamplingParams, dart: float) -> int:
    if weights_V is None:
        return int(logits_V.argmax())
    ids_C, line_C = pieces(logits_V, weights_V, params)
    # `right` steps over tokens of probability 0: they take no room on the line.
    return int(ids_C[line_C.searchsorted(dart * line_C[-1], side="right")])


def pieces(logits_V: np.ndarray, weights_V: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that temperature and filters leave, ascending, and where each one's piece of the line ends.

    `weights_V` is what `weigh` returns of these scores.
    """
    ids_C = None  # all
    if 0 < params.top_k < len(logits_V):
        scores_V = logits_V / np.float32(params.temperature)
        ids_C = np.flatnonzero(scores_V >= np.partition(scores_V, -params.top_k)[-params.top_k])  # with all its equals
    if params.top_p < 1:
        kept_C = nucleus(weights_V if ids_C is None else weights_V[ids_C], rounded(params.top_p))
        ids_C = kept_C if ids_C is None else ids_C[kept_C]
    ids_C = np.arange(len(logits_V)) if ids_C is None else ids_C
    weights_C = weights_V[ids_C]
    if params.min_p or params.typical_p < 1:
        scores_C = torch.from_numpy(logits_V[ids_C] / np.float32(params.temperature))
        scores_C = keep_min_p(scores_C, params.min_p) if params.min_p else scores_C
        scores_C = keep_typical(scores_C, rounded(params.typical_p)) if params.typical_p < 1 else scores_C
        weights_C = scores_C.softmax(-1).numpy()
    return ids_C, weights_C.astype(np.float64).cumsum()


def rounded(p: float) -> float:
    """Return `p` as `RowParams` holds it: of a flat row a part of 1e-8 decides whether one token more belongs to it."""
    return float(np.float32(p))


def nucleus(weights_V: np.ndarray, p: float) -> np.ndarray:
    """Return the ids of the fewest tokens that hold the share `p` of all weights, ascending.

    Of equals, the lower id goes first. Looked for among the likeliest alone, as long as these are enough.
    """
    enough, most = p * weights_V.sum(dtype=np.float64), weights_V.max()
    for floor in FLOORS:
        ids_C = np.flatnonzero(weights_V >= floor * most)
        weights_C = weights_V[ids_C]
        falling_C = np.sort(weights_C)[::-1].astype(np.float64)
        before_C = falling_C.cumsum() - falling_C
        n = max(1, int(before_C.searchsorted(enough)))  # those before which it is not yet enough
        if n < len(falling_C):
            break
    lowest = np.float32(falling_C[n - 1])
    kept_C = weights_C >= lowest
    if n < len(falling_C) and falling_C[n] == lowest:
        equal_C = np.flatnonzero(weights_C == lowest)
        kept_C[equal_C[n - int((weights_C > lowest).sum()) :]] = False
    return ids_C[kept_C]
