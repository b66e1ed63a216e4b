"""Log-likelihoods: how probable a model holds a continuation, in one pass over trees of texts that begin alike.

The scores are those of each text alone, to rounding: `tests/eval` holds them against transformers by way of lm-eval.
Letters: B trees, T tokens, D width, W tokens whose successors are asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mini_llm.eval.trees import Pair, Tree, batches, plant
from mini_llm.model.rope import rope_tables
from mini_llm.model.transformer import Transformer

CPU_TOKENS, GPU_TOKENS = 2048, 32768  # of a batch; chosen, not measured
MOST_SCORES = 2**24  # that exist at a time: 64 MB in float32


class Score(NamedTuple):
    """The log-likelihood of a continuation in nats, and whether each of its tokens is the likeliest."""

    loglikelihood: float
    is_greedy: bool


@torch.no_grad()
def score_pairs(
    model: Transformer,
    pairs: Sequence[Pair],
    *,
    before_batch: Callable[[], None] = lambda: None,
    on_batch: Callable[[int], None] = lambda _n: None,
) -> list[Score]:
    """Return the score of each continuation after its context.

    Args:
        model: in the precision to compute in; it is in eval mode meanwhile, and no random state is touched.
        pairs: ids, at least one on each side.
        before_batch: called before each batch; may raise, to stop.
        on_batch: is told how many pairs a batch has answered.
    """
    found: list[Score | None] = [None] * len(pairs)
    most_tokens = CPU_TOKENS if model.lm_head.weight.device.type == "cpu" else GPU_TOKENS
    was_training = model.training
    model.eval()
    try:
        for batch in batches(plant(pairs, model.config.max_seq_len), most_tokens):
            before_batch()
            answers = _score_batch(model, batch)
            for number, score in answers:
                found[number] = score
            on_batch(len(answers))
    finally:
        model.train(was_training)
    return [score for score in found if score is not None]


def _score_batch(model: Transformer, trees: list[Tree]) -> list[tuple[int, Score]]:
    hidden_BTD = read_trees(model, trees)
    places: dict[tuple[int, int], int] = {}  # (tree, node) -> row of W: several choices may ask the same token
    asked = [(row, *question) for row, tree in enumerate(trees) for question in tree.asked]
    wanted = [places.setdefault((row, node), len(places)) for row, _, nodes, _ in asked for node in nodes]
    targets = [target for _, _, _, following in asked for target in following]
    rows, nodes = zip(*places, strict=True)
    hidden_WD = hidden_BTD[torch.tensor(rows, device=hidden_BTD.device), torch.tensor(nodes, device=hidden_BTD.device)]
    logprobs, greedy = _look_up(model, hidden_WD, np.array(wanted), np.array(targets))
    answers, start = [], 0
    for _, number, _, following in asked:
        end = start + len(following)
        answers.append((number, Score(float(logprobs[start:end].sum()), bool(greedy[start:end].all()))))
        start = end
    return answers


def read_trees(model: Transformer, trees: list[Tree]) -> Tensor:
    """Return the hidden states (B, T, D) of trees, one a row, padded on the right."""
    size, device = max(len(tree.ids) for tree in trees), model.lm_head.weight.device
    ids, depths = np.zeros((2, len(trees), size), dtype=np.int64)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.ids)], depths[row, : len(tree.ids)] = tree.ids, tree.depths
    if all(tree.is_chain for tree in trees):  # padding on the right is never seen
        return model.model(torch.from_numpy(ids).to(device))
    mask = np.zeros((len(trees), size, size), dtype=bool)
    for row, tree in enumerate(trees):
        tree.see(mask[row])
    mask_B1TT = torch.from_numpy(mask)[:, None].to(device)
    x_BTD = model.model.embed_tokens(torch.from_numpy(ids).to(device))
    rope = rope_tables(torch.from_numpy(depths).to(device), model.config, x_BTD.dtype)
    for layer in model.model.layers:
        x_BTD = layer(x_BTD, rope, mask_B1TT, False, None)
    return model.model.norm(x_BTD)


def _look_up(
    model: Transformer, hidden_WD: Tensor, wanted: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probability of each target after row `wanted` of W, and whether it is the likeliest there."""
    logprobs, greedy = np.empty(len(wanted), dtype=np.float32), np.empty(len(wanted), dtype=bool)
    step = max(1, MOST_SCORES // model.config.vocab_size)
    for start in range(0, len(hidden_WD), step):
        here = np.flatnonzero((wanted >= start) & (wanted < start + step))
        logprobs_WV = model.lm_head(hidden_WD[start : start + step]).float().log_softmax(-1)
        rows = torch.from_numpy(wanted[here] - start).to(hidden_WD.device)
        next_ids = torch.from_numpy(targets[here]).to(hidden_WD.device)
        logprobs[here] = logprobs_WV[rows, next_ids].cpu().numpy()
        greedy[here] = (logprobs_WV.argmax(-1)[rows] == next_ids).cpu().numpy()
    return logprobs, greedy
