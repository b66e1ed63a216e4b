"""What a request has seen and written, for the sampling rules that look back. Letters: V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mini_llm.errors import UsageError
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.sampling import penalize_repetition, penalize_written


def check_ids(sampling: SamplingParams, vocab_size: int) -> None:
    """Raise UsageError for a biased or banned id that does not exist, and where all are banned."""
    for token_id in (*sampling.logit_bias, *sampling.banned_ids):
        if not 0 <= token_id < vocab_size:
            raise UsageError(f"token id {token_id} does not exist: ids go from 0 to {vocab_size - 1}")
    if len(set(sampling.banned_ids)) == vocab_size:
        raise UsageError("all tokens are banned")


class History:
    """Which tokens a request holds and how often it wrote them; `adjust` applies penalties, biases and bans.

    Of the prompt's ids, those from `vocab_size` on do not count: they are never chosen.
    """

    def __init__(
        self, sampling: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, device: torch.device
    ) -> None:
        self.sampling = sampling
        self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.seen_V[[token_id for token_id in prompt_ids if token_id < vocab_size]] = True
        self.counts_V = torch.zeros(vocab_size, device=device)
        self.bias_V = torch.zeros(vocab_size, device=device)
        for token_id, bias in sampling.logit_bias.items():
            self.bias_V[token_id] = bias
        self.bias_V[list(sampling.banned_ids)] = -math.inf

    def add(self, token_id: int) -> None:
        """Remember one written token."""
        self.seen_V[token_id] = True
        self.counts_V[token_id] += 1

    def adjust(self, logits_V: Tensor) -> Tensor:
        """Return the scores after repetition, presence and frequency penalties, then biases and bans."""
        logits_V = penalize_repetition(logits_V.float(), self.seen_V, self.sampling.repetition_penalty)
        presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
        return penalize_written(logits_V, self.counts_V, presence, frequency) + self.bias_V
