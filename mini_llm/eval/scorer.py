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
from mini_llm.inference.backends.eager import blocks_of
from mini_llm.model.rope import rope_tables
from mini_llm.model.transformer import Transformer

CPU_TOKENS, GPU_TOKENS = (
    1024,
    32768,
)  # of a batch; the first stays in a core's cache, the second is chosen, not measured
# That exist at a time. On a CPU 4 MB in float32, which stay in its cache; the pages of 64 MB would be taken from the
# system anew each time.
MOST_SCORES = {"cpu": 2**20}
MOST_SCORES_ELSEWHERE = 2**24


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
    places: dict[tuple[int, int], int] = {}  # (tree, node) -> row of W: several choices may ask the same token
    asked = [(row, *question) for row, tree in enumerate(trees) for question in tree.asked]
    wanted = [places.setdefault((row, node), len(places)) for row, _, nodes, _ in asked for node in nodes]
    targets = [target for _, _, _, following in asked for target in following]
    hidden_WD = read_trees(model, trees, list(places))
    logprobs, greedy = _look_up(model, hidden_WD, np.array(wanted), np.array(targets))
    answers, start = [], 0
    for _, number, _, following in asked:
        end = start + len(following)
        answers.append((number, Score(float(logprobs[start:end].sum()), bool(greedy[start:end].all()))))
        start = end
    return answers


def read_trees(model: Transformer, trees: list[Tree], places: list[tuple[int, int]]) -> Tensor:
    """Return the hidden states (W, D) of `places`, (tree, node), of trees that stand one a row, padded on the right.

    Padding goes through attention alone. In the last layer nobody else looks at the others' own thinking: its MLP is
    computed for `places` alone.
    """
    size, device = max(len(tree.ids) for tree in trees), model.lm_head.weight.device
    ids, depths, cells = np.zeros((3, len(trees), size), dtype=np.int64)
    for row, tree in enumerate(trees):
        n = len(tree.ids)
        ids[row, :n], depths[row, :n], cells[row, :n] = tree.ids, tree.depths, 1
    is_causal = all(tree.is_chain for tree in trees)  # then padding on the right is never seen
    inside_N, ids_BT, depths_BT = (torch.from_numpy(x).to(device) for x in (np.flatnonzero(cells), ids, depths))
    places_W = torch.tensor([row * size + node for row, node in places], device=device)
    x_BTD = model.model.embed_tokens(ids_BT)
    mask_B1TT = None if is_causal else _mask(trees, size).to(device, x_BTD.dtype)
    rope = rope_tables(depths_BT, model.config, x_BTD.dtype)
    *layers, last = blocks_of(model)
    for layer in layers:
        x_BTD = x_BTD + layer.self_attn(layer.input_layernorm(x_BTD), rope, mask_B1TT, is_causal, None)
        x_ND = x_BTD.flatten(0, 1)[inside_N]
        x_BTD.flatten(0, 1)[inside_N] = x_ND + layer.mlp(layer.post_attention_layernorm(x_ND))
    x_BTD = x_BTD + last.self_attn(last.input_layernorm(x_BTD), rope, mask_B1TT, is_causal, None)
    x_WD = x_BTD.flatten(0, 1)[places_W]
    return model.model.norm(x_WD + last.mlp(last.post_attention_layernorm(x_WD)))


def _mask(trees: list[Tree], size: int) -> Tensor:
    """Return what is added to attention's scores, (B, 1, T, T): 0 or -inf, which each layer would make of bool anew."""
    seen = np.zeros((len(trees), size, size), dtype=bool)
    for row, tree in enumerate(trees):
        tree.see(seen[row])
    return torch.from_numpy(np.where(seen, np.float32(0), np.float32("-inf")))[:, None]


def _look_up(
    model: Transformer, hidden_WD: Tensor, wanted: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probability of each target after row `wanted` of W, and whether it is the likeliest there."""
    logprobs, greedy = np.empty(len(wanted), dtype=np.float32), np.empty(len(wanted), dtype=bool)
    most = MOST_SCORES.get(hidden_WD.device.type, MOST_SCORES_ELSEWHERE)
    step = max(1, most // model.config.vocab_size)
    for start in range(0, len(hidden_WD), step):
        here = np.flatnonzero((wanted >= start) & (wanted < start + step))
        logprobs_WV = model.lm_head(hidden_WD[start : start + step]).float().log_softmax(-1)
        rows = torch.from_numpy(wanted[here] - start).to(hidden_WD.device)
        next_ids = torch.from_numpy(targets[here]).to(hidden_WD.device)
        found = logprobs_WV[rows, next_ids]
        may_be = found == logprobs_WV.amax(-1)[rows]  # of equals the first one counts: looked for where it can be this
        may_be[may_be.clone()] = logprobs_WV[rows[may_be]].argmax(-1) == next_ids[may_be]
        logprobs[here], greedy[here] = found.cpu().numpy(), may_be.cpu().numpy()
    return logprobs, greedy
