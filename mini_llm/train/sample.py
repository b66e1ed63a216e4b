"""Samples: what the model writes while it learns says more at a glance than its loss.

A loop of twenty lines: likely tokens drawn one after the other, with a random state of its own. The real thing, with
batches and penalties, is in inference/, which training does not know.
"""

from __future__ import annotations

import torch

from mini_llm.model.kv_cache import KVCache
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer

MAX_NEW_TOKENS = 48
TEMPERATURE = 0.7


@torch.no_grad()
def write_sample(model: Transformer, tokenizer: Tokenizer, prompt: str, seed: int) -> str:
    """Return what the model writes after `prompt`, without it: the same text for the same weights and seed.

    It computes in the weights' own type, and does not touch the random state of training.
    """
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(prompt)]
    if not ids:  # as at the beginning of a document; every token store has one of the two
        ids = [tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id or 0]
    room = model.config.max_seq_len - MAX_NEW_TOKENS
    ids = ids[-max(1, room) :]  # a prompt longer than the context: its end
    weight = model.lm_head.weight
    random = torch.Generator().manual_seed(seed)
    cache = KVCache(model.config, 1, len(ids) + MAX_NEW_TOKENS, device=weight.device, dtype=weight.dtype)
    written: list[int] = []
    was_training = model.training
    model.eval()
    try:
        unread = ids
        for _ in range(min(MAX_NEW_TOKENS, model.config.max_seq_len - len(ids))):
            scores_1TV = model(torch.tensor([unread], device=weight.device), cache=cache, last_only=True)
            scores_V = scores_1TV[0, -1, : tokenizer.vocab_size].float().cpu()
            if not scores_V.isfinite().all():  # the next step will say so
                break
            token = int(torch.multinomial((scores_V / TEMPERATURE).softmax(-1), 1, generator=random))
            if token in tokenizer.eos_ids:
                break
            written.append(token)
            unread = [token]
    finally:
        model.train(was_training)
    return tokenizer.decode(written)
