"""Pretraining with `document_attention`: what a row's other documents say changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mini_llm.model.transformer import Transformer
from mini_llm.train.loss import token_loss_sum
from mini_llm.train.objective import Pretraining

PARTS = (3, 7, 1, 9)  # tokens of each document; a row ends in the middle of the last


def row_of_documents(first: list[int], last: list[int], vocab_size: int) -> torch.Tensor:
    """Return one row of documents, each between what begins and what ends one."""
    drawn = iter(torch.randint(10, vocab_size, (sum(PARTS),), generator=torch.Generator().manual_seed(0)).tolist())
    ids = [id for size in PARTS for id in (*first, *(next(drawn) for _ in range(size)), *last)]
    return torch.tensor([ids[:-1]])


@pytest.mark.parametrize("names", [("bos", "eos"), ("bos",), ("eos",)])
def test_the_loss_of_a_row_is_that_of_its_documents_each_alone(make_config: Any, names: tuple[str, ...]) -> None:
    objective = Pretraining(make_config(document_attention=True, compile=False))
    objective.__dict__["tokenizer"] = SimpleNamespace(  # a tokenizer that marks beginnings, ends or both
        bos_id=1 if "bos" in names else None, eos_id=2
    )
    model = Transformer(objective.config.model)
    model.init_weights(seed=1)
    first, last = [1] * ("bos" in names), [2] * ("eos" in names)
    rows = row_of_documents(first, last, model.config.vocab_size)
    ids, targets = rows[0, :-1], rows[0, 1:]
    alone, at = torch.zeros(()), 0
    for size in PARTS:
        part = slice(at, min(at + len(first) + size + len(last), len(ids)))
        alone = alone + token_loss_sum(model(ids[None, part]), targets[None, part])
        at = part.stop
    assert at == len(ids)
    together = objective.loss_sum(model, rows, torch.float32)
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)
    seen = Pretraining(make_config(compile=False)).loss_sum(model, rows, torch.float32)
    assert abs(seen.item() - alone.item()) > 5e-5 * alone.item(), "the documents did not matter"
