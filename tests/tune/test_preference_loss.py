"""Losses of preference equal their papers' formulas in float64, log-probabilities and gradients a plain pass's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mini_llm.checkpoint import load_model
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.log_probs import document_log_probs
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.pair_rows import PairRows, most_pairs
from mini_llm.tune.pair_set import read_pair_set
from mini_llm.tune.preference_loss import BETAS, LossName, Preference
from mini_llm.tune.rows import ConversationRows

LOSSES: list[LossName] = ["dpo_norm", "dpo", "ipo", "simpo"]


def sigmoid_loss(x: float) -> float:
    return math.log1p(math.exp(-x))


def by_the_papers(name: str, beta: float, gamma: float, pair: list[tuple[float, float, int]]) -> float:
    """One pair: (log p, log p of the reference, tokens) of the chosen and of the rejected answer."""
    (pc, rc, nc), (pr, rr, nr) = pair
    if name == "dpo":  # arXiv 2305.18290, eq. 7
        return sigmoid_loss(beta * ((pc - rc) - (pr - rr)))
    if name == "dpo_norm":  # arXiv 2411.15124, section 5
        return sigmoid_loss(beta / nc * (pc - rc) - beta / nr * (pr - rr))
    if name == "ipo":  # arXiv 2310.12036, eq. 17, per token
        return ((pc - rc) / nc - (pr - rr) / nr - 1 / (2 * beta)) ** 2
    return sigmoid_loss(beta / nc * pc - beta / nr * pr - gamma)  # arXiv 2405.14734, eq. 6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 1.0, None])
def test_losses_are_those_of_their_papers(name: LossName, beta: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    log_p, reference = (-30 * torch.rand(40, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, 40, (40, 2), generator=draw)
    beta = BETAS[name] if beta is None else beta
    gamma = 0.7 if name == "simpo" else 0.0
    preference = Preference(name, beta, gamma)
    losses = preference.losses(preference.rewards(log_p, reference, lengths))
    for i in range(40):
        pair = [(log_p[i, k].item(), reference[i, k].item(), int(lengths[i, k])) for k in (0, 1)]
        assert losses[i].item() == pytest.approx(by_the_papers(name, beta, gamma, pair), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "first"), [("dpo_norm", math.log(2)), ("dpo", math.log(2)), ("ipo", 1.0)])
def test_two_equal_models_give_the_first_loss(name: LossName, first: float) -> None:
    log_p = torch.tensor([[-3.0, -50.0]])
    preference = Preference(name, BETAS[name])
    loss = preference.losses(preference.rewards(log_p, log_p, torch.tensor([[3, 9]])))
    assert loss.item() == pytest.approx(first, abs=1e-7)


def test_an_answer_twice_as_long_counts_twice_in_plain_dpo_alone() -> None:
    gains, lengths = torch.tensor([[4.0, 8.0]]), torch.tensor([[10, 20]])
    nothing = torch.zeros(1, 2)
    assert Preference("dpo", 0.1).rewards(gains, nothing, lengths).tolist() == [
        [pytest.approx(0.4), pytest.approx(0.8)]
    ]
    assert Preference("dpo_norm", 5.0).rewards(gains, nothing, lengths).tolist() == [[2.0, 2.0]]


@pytest.fixture(scope="module")
def packed(chat_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> PackedRows:
    import json

    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    words = ["ant", "bee", "cat", "dog", "eel", "fox"]
    rows = [
        {"prompt": f"Spell {w}{v}.", "chosen": " ".join(w + v), "rejected": (w + v) * (1 + n % 3)}
        for n, (w, v) in enumerate((w, v) for w in words for v in words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, _, _ = read_pair_set([str(path)], chat_tokenizer, block_size=63, val_fraction=0.1)
    return PackedRows(train, block_size=63, pad_id=0, seed=3, together=2)


def test_a_pair_is_never_parted(packed: PackedRows) -> None:
    assert packed.n_rows > 3
    for row in packed.plan:
        assert [i % 2 for i in row] == [0, 1] * (len(row) // 2)
        assert [b - a for a, b in zip(row[::2], row[1::2], strict=True)] == [1] * (len(row) // 2)
    assert sorted(i for row in packed.plan for i in row) == list(range(packed.conversations.n))
    reference = torch.arange(packed.conversations.n, dtype=torch.float32)
    rows = PairRows.of(packed, packed.places(0, 4), reference, most_pairs(packed))
    for part in (rows, *rows.split(2), rows[1:2]):
        for documents, values in zip(part.rows.documents, part.reference, strict=True):
            n = len(documents.unique()) // 2
            assert (values[:n, 1] - values[:n, 0]).tolist() == [1.0] * n
            assert not values[n:].any()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.needs_torch_compile)])
def test_packed_log_probs_and_gradients_are_those_of_each_answer_alone(
    compiled: bool, packed: PackedRows, base: Path
) -> None:
    model = load_model(base, device="cpu", dtype=torch.float32).requires_grad_(True)
    rows, n = packed.in_order([0, 1, 2]), 2 * most_pairs(packed)
    draw = torch.Generator().manual_seed(1)
    counts = torch.randn(3, n, generator=draw)  # how much each answer counts, as a loss would decide
    found = torch.compile(document_log_probs, dynamic=False) if compiled else document_log_probs
    log_p, lengths = found(model, rows, torch.float32, n)
    (log_p * counts).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    total = torch.zeros(())
    for row in range(3):
        for number in range(n):
            mine = rows.documents[row] == number
            ids, learned = rows.ids[row][mine][None], rows.weights[row][mine] > 0
            assert lengths[row, number] == learned.sum()
            if not learned.any():
                assert log_p[row, number] == 0
                continue
            all_log_p = F.log_softmax(model(ids[:, :-1])[0], -1).gather(1, ids[0, 1:, None])[:, 0]
            alone = all_log_p[learned[1:]].sum()
            torch.testing.assert_close(log_p[row, number], alone, atol=1e-5, rtol=1e-6)
            total = total + alone * counts[row, number]
    total.backward()
    for a, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, atol=2e-5, rtol=1e-4)


def test_no_score_moves_when_a_later_answer_changes(packed: PackedRows, base: Path) -> None:
    model = load_model(base, device="cpu", dtype=torch.float32)
    rows, n = packed.in_order([0]), 2 * most_pairs(packed)
    last = int(rows.documents.max()) - 1
    changed = torch.where(rows.documents >= last, (rows.ids + 7) % 300, rows.ids)
    before, _ = document_log_probs(model, rows, torch.float32, n)
    after, _ = document_log_probs(model, ConversationRows(changed, rows.weights, rows.documents), torch.float32, n)
    assert before[0, :last].equal(after[0, :last])
    assert not before[0, last].equal(after[0, last])
