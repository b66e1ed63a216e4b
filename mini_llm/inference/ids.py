"""Ids in, ids out: read the prompt once, then choose one token after the other. No text here.

Letters: B batch, T tokens, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mini_llm.errors import UsageError, UserError
from mini_llm.inference.memory import Memory, new_cache
from mini_llm.inference.sampling import SamplingParams, sample
from mini_llm.model.kv_cache import KVCache
from mini_llm.model.transformer import Transformer


class IdGenerator:
    """A model that goes on from a list of ids.

    Args:
        model: on its device, in eval mode.
        vocab_size: ids from here on are never chosen; a model may have more rows than its tokenizer has tokens.
        eos_ids: after one of these, nothing follows.
        source: where the weights are from, for error messages.
    """

    def __init__(self, model: Transformer, *, vocab_size: int, eos_ids: Collection[int], source: Path | str) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self.eos_ids = eos_ids
        self.source = source
        self.device = model.lm_head.weight.device

    def budget(self, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
        """Return how many tokens may follow: `max_new_tokens`, or what is left of the context.

        Raises:
            UserError: the prompt fills the context.
            UsageError: `max_new_tokens` is below 1.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={max_new_tokens} must be 1 or more")
        context = self.model.config.max_seq_len
        if len(prompt_ids) >= context:
            raise UserError(
                f"the prompt has {len(prompt_ids)} tokens and the model's context is {context}: no room to go on",
                "use a shorter prompt",
            )
        return min(max_new_tokens, context - len(prompt_ids))

    def stream(
        self,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        seed: int | None = None,
        memory: Memory | None = None,
    ) -> Iterator[int]:
        """Return an iterator over the ids that follow `prompt_ids`; an eos id, if one comes, is the last.

        What `memory` holds of the prompt is not read again, and it remembers this text for the next call.
        """
        budget = self.budget(prompt_ids, max_new_tokens)
        return self._stream(prompt_ids, budget, sampling, _random(seed), memory or Memory())

    def _stream(
        self, prompt_ids: list[int], budget: int, sampling: SamplingParams, random: torch.Generator, memory: Memory
    ) -> Iterator[int]:
        cache, unread = memory.recall(prompt_ids, self.model, n_slots=len(prompt_ids) + budget)
        seen_1V = self._seen([prompt_ids])
        for _ in range(budget):
            logits_1V = self._score(torch.tensor([unread]), cache)
            memory.ids += unread
            token_id = int(sample(logits_1V, sampling, random, seen_1V))
            yield token_id
            if token_id in self.eos_ids:
                return
            seen_1V[0, token_id] = True
            unread = [token_id]

    def batch(
        self, prompts: list[list[int]], *, max_new_tokens: int, sampling: SamplingParams, seed: int | None = None
    ) -> list[list[int]]:
        """Return the ids that follow each prompt. All rows are computed together, the short ones padded on the left.

        A row that has ended is computed in vain until the last one ends.
        """
        budgets = [self.budget(ids, max_new_tokens) for ids in prompts]
        if not prompts:
            return []
        unread_BT, positions_BT = _left_pad(prompts)
        cache = new_cache(self.model, len(prompts), unread_BT.shape[1] + max(budgets))
        random, seen_BV = _random(seed), self._seen(prompts)
        rows: list[list[int]] = [[] for _ in prompts]
        going = set(range(len(rows)))
        logits_BV = self._score(unread_BT, cache, positions_BT)
        while True:
            next_B = sample(logits_BV, sampling, random, seen_BV)
            for row in going:
                rows[row].append(int(next_B[row]))
            going = {row for row in going if len(rows[row]) < budgets[row] and rows[row][-1] not in self.eos_ids}
            if not going:
                return rows
            seen_BV.scatter_(1, next_B[:, None].to(self.device), True)
            logits_BV = self._score(next_B[:, None], cache)

    @torch.inference_mode()
    def _score(self, ids_BT: Tensor, cache: KVCache, positions_BT: Tensor | None = None) -> Tensor:
        """Read ids and return the scores (B, V) of each row's next token."""
        positions_BT = None if positions_BT is None else positions_BT.to(self.device)
        logits_B1V = self.model(ids_BT.to(self.device), cache=cache, positions_BT=positions_BT, last_only=True)
        logits_BV = logits_B1V[:, 0, : self.vocab_size]
        if not logits_BV.isfinite().all():
            overflow = ", or use dtype float32: float16 overflows" if logits_BV.dtype == torch.float16 else ""
            raise UserError(
                f"the model in {self.source} computes NaN or infinite scores",
                f"its weights are damaged: use an earlier checkpoint of the run{overflow}",
            )
        return logits_BV

    def _seen(self, rows: list[list[int]]) -> Tensor:
        """Mark which tokens each row holds: bool (B, V)."""
        seen_BV = torch.zeros(len(rows), self.vocab_size, dtype=torch.bool, device=self.device)
        for row, ids in enumerate(rows):
            seen_BV[row, ids] = True
        return seen_BV


def _left_pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) with zeros before the short rows, and each token's position, -1 for those zeros."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    positions_BT = torch.tensor([[-1] * (longest - len(row)) + list(range(len(row))) for row in rows])
    return ids_BT, positions_BT


def _random(seed: int | None) -> torch.Generator:
    random = torch.Generator()
    if seed is None:
        random.seed()  # a new one each time
    else:
        random.manual_seed(seed % 2**63)
    return random
