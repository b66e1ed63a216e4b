"""Rows that begin with documents: every token is a target once an epoch, however long or short the documents are."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.data.token_store import TokenSplit
from mini_llm.errors import UserError
from mini_llm.train.rows.dataloader import TrainLoader
from mini_llm.train.rows.document_rows import DocumentRows


class Documents:
    """A split whose token at i is i."""

    def __init__(self, lengths: list[int]) -> None:
        self.starts = np.cumsum([0, *lengths[:-1]])
        self.n_tokens = sum(lengths)

    def read(self, start: int, count: int) -> np.ndarray:
        assert 0 <= start <= start + count <= self.n_tokens
        return np.arange(start, start + count)

    def document_starts(self) -> np.ndarray:
        return self.starts.astype("<u8")


def loader(lengths: list[int], *, rows_per_step: int = 3, seed: int = 1) -> TrainLoader:
    split: TokenSplit = Documents(lengths)  # type: ignore[assignment]
    return TrainLoader(split, block_size=8, rows_per_step=rows_per_step, seed=seed, align_documents=True)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_no_token_is_lost_and_none_comes_twice(lengths: list[int], seed: int) -> None:
    if sum(lengths) < 9:
        return
    batches = loader(lengths, rows_per_step=1, seed=seed)
    per_epoch = batches.rows_per_epoch
    for epoch in range(2):
        rows = torch.cat([batches.rows(step) for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)])
        assert rows.shape == (per_epoch, 9)
        uses = Counter(rows[:, :-1].flatten().tolist())
        assert max(uses.values()) == 1
        assert sum(lengths) - len(uses) < 8  # the last gap, less than a row


def test_long_documents_begin_rows_and_are_cut_from_there() -> None:
    batches = loader([20, 5, 17, 30], rows_per_step=1)
    rows = {tuple(batches.rows(step)[0].tolist()) for step in range(batches.rows_per_epoch)}
    for document, length in ((0, 20), (25, 17), (42, 30)):
        for start in range(document, document + length - length % 8, 8):
            assert tuple(range(start, start + 9)) in rows, start  # the target of its last token is the one after it


def test_after_the_last_document_comes_the_first() -> None:
    rows = loader([8, 16], rows_per_step=3).rows(0)
    assert sorted(rows[:, -1].tolist()) == [0, 8, 16]


def test_no_end_is_always_in_the_gap() -> None:
    batches = loader([11] * 5, rows_per_step=1)
    seen = {token for step in range(40 * batches.rows_per_epoch) for token in batches.rows(step)[0, :-1].tolist()}
    assert seen == set(range(55))


@pytest.mark.parametrize("rows_per_step", [1, 2, 6])
def test_rows_depend_on_seed_and_step_alone(rows_per_step: int) -> None:
    lengths = [30, 3, 44, 9, 100, 1, 1, 7]
    whole = loader(lengths, rows_per_step=6).rows(4)
    parts = [
        loader(lengths, rows_per_step=rows_per_step).rows(24 // rows_per_step + i) for i in range(6 // rows_per_step)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, loader(lengths, rows_per_step=6, seed=2).rows(4))


@pytest.mark.parametrize("starts", [[1, 9], [0, 20, 10], [0, 10, 10], [0, 30], [0, 99], [0, 2**64 - 1], [2**63]])
def test_starts_that_are_none_are_refused(starts: list[int]) -> None:
    split = Documents([30])
    split.document_starts = lambda: np.array(starts, dtype="<u8")  # type: ignore[method-assign]
    with pytest.raises(UserError, match="must rise from 0 to below 30 tokens") as problem:
        DocumentRows(split, 8)  # type: ignore[arg-type]
    assert "mini-llm prepare" in (problem.value.hint or "")
