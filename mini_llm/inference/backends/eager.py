"""The step as plain PyTorch, one text after the other: the reference for the fast ones, and at work where they are not.

A step reads rows: each is one token, the slot whose text it continues, and its position there. Rows of one slot follow
each other. What comes back are the scores of the token after each row that is asked for.
Letters: N rows, M rows asked for, V vocabulary, B slots, T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, cast

import torch
from torch import Tensor

from mini_llm.inference.backends.slot_cache import SlotCache, SlotView
from mini_llm.model.transformer import Transformer
from mini_llm.model.transformer_block import TransformerBlock


@dataclass(frozen=True)
class Rows:
    """What one step reads, N long each, and which rows' scores are wanted (M indices, ascending)."""

    ids: list[int]
    slots: list[int]
    positions: list[int]
    wanted: list[int]


class Backend(Protocol):
    """One way to compute a step."""

    name: str
    cache: SlotCache
    device: torch.device
    dtype: torch.dtype
    whole_chunks: bool  # the last bits depend on where a prompt is cut, so only what was read in whole chunks is reused

    def run(self, rows: Rows) -> Tensor:
        """Write the rows' keys and values to the cache, which has the room; return scores (M, V), float32."""
        ...


def blocks_of(model: Transformer) -> list[TransformerBlock]:
    """Return the model's blocks under their own type, which nn.ModuleList forgets."""
    return cast("list[TransformerBlock]", list(model.model.layers))


class EagerBackend:
    """The model's own forward pass.

    A matrix product of other size may round in another way. So on a CPU each text is computed alone, and cut as if
    nobody had been there before: else its last bits would depend on others. Elsewhere speed comes first.
    """

    name = "eager"

    def __init__(self, model: Transformer) -> None:
        self.model = model
        weight = model.lm_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.whole_chunks = self.device.type == "cpu"
        self.cache = SlotCache(model.config, self.device, weight.dtype)

    @torch.inference_mode()
    def run(self, rows: Rows) -> Tensor:
        """Compute the step; see `Backend.run`."""
        groups = [list(group) for _, group in groupby(range(len(rows.ids)), key=rows.slots.__getitem__)]
        singles = [group for group in groups if len(group) == 1]
        batches = [[group] for group in groups]
        if self.device.type != "cpu" and len(singles) > 1:
            batches = [[group] for group in groups if len(group) > 1] + [singles]
        wanted = set(rows.wanted)
        scores: dict[int, Tensor] = {}
        for batch in batches:
            hidden_BTD = self._hidden(rows, batch)
            asked = [(b, t, row) for b, group in enumerate(batch) for t, row in enumerate(group) if row in wanted]
            if asked:
                b, t, indices = zip(*asked, strict=True)
                logits_MV = self.model.lm_head(hidden_BTD[list(b), list(t)])
                scores.update(zip(indices, logits_MV.float(), strict=True))
        return torch.stack([scores[row] for row in rows.wanted]) if scores else torch.empty(0, device=self.device)

    def _hidden(self, rows: Rows, batch: Sequence[Sequence[int]]) -> Tensor:
        """Return the last hidden states (B, T, D) of some slots' rows, the same number T of each."""

        def pick(values: list[int]) -> Tensor:
            return torch.tensor([[values[row] for row in group] for group in batch], device=self.device)

        n_places = 1 + max(rows.positions[group[-1]] for group in batch)
        view = SlotView(self.cache, [rows.slots[group[0]] for group in batch], n_places)
        return self.model.model(pick(rows.ids), view, pick(rows.positions))
