"""What followed elsewhere, against counting by hand: the longest context first, the row's own places left out."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from mini_llm.train.rows.continuations import ORDERS, Continuations

V, T = 6, 40


def text_rows(n_rows: int, vocab_size: int = V) -> tuple[Tensor, Tensor]:
    """Rows of one text, one after the other, with a rhythm, so that contexts come back."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(n_rows * T + 1) % 5
    ids = torch.where(torch.rand(len(ids), generator=generator) < 0.5, ids, torch.randint(0, V, ids.shape))
    starts_R = torch.arange(n_rows) * T
    return ids.unfold(0, T + 1, T).clone() * (vocab_size // V), starts_R


def by_hand(rows: Tensor, row: int, place: int, longest: int = 4) -> dict[int, float]:
    """Count what followed the same tokens in all other rows; contexts end where their row begins."""
    texts, left, found = rows.tolist(), 1.0, Counter[int]()
    for length, _, prior in ORDERS:
        if length > longest or length > place + 1:
            continue
        context = texts[row][place + 1 - length : place + 1]
        after = [
            text[end + 1]
            for number, text in enumerate(texts)
            if number != row
            for end in range(length - 1, T)
            if text[end + 1 - length : end + 1] == context
        ]
        says = left * len(after) / (len(after) + prior)
        left -= says
        for token in after:
            found[token] += says / len(after)
    return dict(found)


@pytest.mark.parametrize(("vocab_size", "longest"), [(V, 4), (200_004, 3)])
def test_shares_are_those_counted_by_hand(vocab_size: int, longest: int) -> None:
    """Two rows and few tokens, so that each context is found wherever it comes; 3 of 200,004 tokens fill 54 bits."""
    rows, starts_R = text_rows(2, vocab_size)
    counted = Continuations(rows, starts_R, vocab_size)
    assert counted.longest == longest
    ids_RTM, shares_RTM = counted.after(rows[:, :-1], starts_R)
    for row in range(2):
        for place in range(4, T):
            expected = by_hand(rows, row, place, longest)
            found = torch.zeros(vocab_size).scatter_add_(0, ids_RTM[row, place].long(), shares_RTM[row, place])
            assert found.sum().item() == pytest.approx(sum(expected.values()), abs=1e-6)
            assert {t: found[t].item() for t in expected} == pytest.approx(expected, abs=1e-6)


def test_of_many_places_an_even_sample_speaks() -> None:
    rows, starts_R = text_rows(400)
    ids_RTM, shares_RTM = Continuations(rows, starts_R, V).after(rows[:3, :-1], starts_R[:3])
    off, alone = 0.0, 0.0
    for place in range(10, 40, 5):
        by_all = by_hand(rows, 1, place)
        expected = torch.tensor([by_all.get(token, 0.0) for token in range(V)])
        found = torch.zeros(V).scatter_add_(0, ids_RTM[1, place].long(), shares_RTM[1, place])
        assert found.sum().item() == pytest.approx(expected.sum().item(), abs=0.01)
        off += (found - expected).square().sum().item()
        alone += (1 - expected.square().sum()).item()  # the variance of one continuation drawn at random
    assert off < alone / 16  # 32 places for each context


def test_what_was_seen_nowhere_else_says_nothing() -> None:
    rows, starts_R = text_rows(2)
    rows[0, 20] = V - 1  # the only one
    rows[rows == V - 1] = 0
    rows[0, 20] = V - 1
    _, shares_RTM = Continuations(rows, starts_R, V).after(rows[:, :-1], starts_R)
    assert shares_RTM[0, 20].sum() == 0
    assert (shares_RTM >= 0).all()
    assert shares_RTM.sum(-1).max() < 1


def test_a_row_cut_elsewhere_leaves_out_its_own_text_too() -> None:
    """In a later epoch rows begin at other places; what lies in them was sorted under other rows."""
    ids = torch.randperm(1000)[: 4 * T + 1]  # no token twice: whatever is found is the row's own text
    rows, starts_R = ids.unfold(0, T + 1, T), torch.arange(4) * T
    shifted = ids[7 : 7 + T][None]
    _, shares_RTM = Continuations(rows, starts_R, 1000).after(shifted, torch.tensor([7]))
    assert shares_RTM.sum() == 0
    _, shares_RTM = Continuations(rows, starts_R, 1000).after(shifted, torch.tensor([10_000]))
    assert (shares_RTM.sum(-1) > 0).all()
