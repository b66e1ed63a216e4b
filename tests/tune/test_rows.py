"""What is learned is exactly the answers and their end; rows hold whole conversations that never see each other."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mini_llm.checkpoint import load_model
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.loss import token_loss_sum
from mini_llm.tune.answer_loss import answer_loss_sum
from mini_llm.tune.conversations import read_set
from mini_llm.tune.encode import encode, shortened
from mini_llm.tune.formats import Conversation
from mini_llm.tune.packing import PackedRows, plan_rows
from mini_llm.tune.rows import ConversationRows


def conversation(n_turns: int, draw: random.Random) -> Conversation:
    def text() -> str:
        return "".join(draw.choice("abc dé\n\t😀<|end|>") for _ in range(draw.randint(1, 20))) or "a"

    roles = ["system"] * draw.randint(0, 1) + ["user", "assistant"] * n_turns
    return Conversation([Message(role, text()) for role in roles], [role == "assistant" for role in roles], "")


def test_ids_are_those_of_chat_and_the_mask_is_that_of_transformers(chat_tokenizer: Tokenizer) -> None:
    """transformers marks what stands between its `generation` tags: the answer with its end."""
    AutoTokenizer = pytest.importorskip("transformers", reason="needs transformers").AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(chat_tokenizer.folder)
    say = "message['content'] ~ '<|end|>'"
    tagged = (
        "{{ bos_token }}{% for message in messages %}{{ '<|' ~ message['role'] ~ '|>' }}"
        f"{{% if message['role'] == 'assistant' %}}{{% generation %}}{{{{ {say} }}}}{{% endgeneration %}}"
        f"{{% else %}}{{{{ {say} }}}}{{% endif %}}{{% endfor %}}"
    )
    draw = random.Random(0)
    for _ in range(200):
        found = conversation(draw.randint(1, 3), draw)
        # Where a text names a marker, transformers makes a control token of it: not ours.
        plain = [Message(m.role, m.content.replace("<", "").replace("|", "") or "a") for m in found.messages]
        found = Conversation(plain, found.learned, "")
        ids, learned = encode(chat_tokenizer, found)
        assert ids == encode_chat(chat_tokenizer, found.messages, add_generation_prompt=False)
        rows = [{"role": m.role, "content": m.content} for m in found.messages]
        both = theirs.apply_chat_template(
            rows, chat_template=tagged, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        assert both["input_ids"] == ids
        assert [bool(flag) for flag in both["assistant_masks"]] == learned


def test_a_conversation_too_long_keeps_whole_answers(chat_tokenizer: Tokenizer) -> None:
    draw = random.Random(1)
    for _ in range(50):
        found = conversation(3, draw)
        whole, _ = encode(chat_tokenizer, found)
        for most in (len(whole), len(whole) - 1, len(whole) // 2):
            kept = shortened(chat_tokenizer, found, most)
            if kept is None:
                continue
            ids, learned, was_cut = kept
            assert len(ids) <= most
            assert was_cut == (len(ids) < len(whole))
            assert ids == whole[: len(ids)]
            assert ids[-1] == chat_tokenizer.special_id("<|end|>")
            assert learned[-1]


def test_rows_are_planned_tightly() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.geometric(1 / 60, 500).clip(5, 257)  # as conversations are: many short, few long
    plan = plan_rows(lengths, 257)
    assert sorted(index for row in plan for index in row) == list(range(500))
    assert max(sum(lengths[row]) for row in plan) <= 257
    assert len(plan) <= 1.03 * np.ceil(lengths.sum() / 257)
    assert plan == plan_rows(lengths, 257)


@pytest.fixture
def packed(spelling_file: Path, chat_tokenizer: Tokenizer) -> PackedRows:
    train, _, counts = read_set([str(spelling_file)], chat_tokenizer, block_size=127, val_fraction=0.1)
    assert counts.read == 70
    assert counts.held_out == 70 - train.n
    return PackedRows(train, block_size=127, pad_id=0, seed=3)


def test_each_epoch_has_each_conversation_once_in_another_order(packed: PackedRows) -> None:
    n = packed.n_rows
    assert n > 3
    first, second = packed.rows(0, n), packed.rows(n, n)
    assert sorted(first.ids.flatten().tolist()) == sorted(second.ids.flatten().tolist())
    assert not first.ids.equal(second.ids)
    pieces = ConversationRows.joined([packed.rows(0, 2), packed.rows(2, n)])
    assert pieces.ids.equal(packed.rows(0, n + 2).ids)
    assert first.weights.sum() == packed.conversations.learned.sum()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.needs_torch_compile)])
def test_packed_loss_and_gradient_are_those_of_each_alone(compiled: bool, packed: PackedRows, base: Path) -> None:
    model = load_model(base, device="cpu", dtype=torch.float32).requires_grad_(True)
    rows = packed.rows(0, 3)
    loss = torch.compile(answer_loss_sum, dynamic=False) if compiled else answer_loss_sum
    total = loss(model, rows, torch.float32)
    total.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = torch.zeros(())
    for ids, weights, documents in zip(rows.ids, rows.weights, rows.documents, strict=True):
        for number in documents.unique():
            mine, learned = ids[documents == number][None], weights[documents == number][None]
            if not learned.any():
                continue
            logits, targets = model(mine[:, :-1])[learned[:, 1:] > 0], mine[:, 1:][learned[:, 1:] > 0]
            alone = alone + token_loss_sum(logits[None], targets[None])
    torch.testing.assert_close(total, alone, rtol=1e-6, atol=1e-6)
    alone.backward()
    for mine, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-5)


def test_no_score_moves_when_a_later_conversation_changes(packed: PackedRows, base: Path) -> None:
    model = load_model(base, device="cpu", dtype=torch.float32)
    rows = packed.rows(0, 1)
    before = model(rows.ids, documents_BT=rows.documents)
    last = rows.documents.max()
    changed = torch.where(rows.documents >= last - 1, (rows.ids + 7) % 300, rows.ids)
    after = model(changed, documents_BT=rows.documents)
    kept = (rows.documents < last - 1)[0]
    assert kept.any()
    assert before[0, kept].equal(after[0, kept])


def test_weights_scale_and_turn_the_loss(packed: PackedRows, base: Path) -> None:
    model = load_model(base, device="cpu", dtype=torch.float32)
    rows = packed.rows(0, 2)
    twice = ConversationRows(rows.ids, -2 * rows.weights, rows.documents)
    torch.testing.assert_close(
        answer_loss_sum(model, twice, torch.float32), -2 * answer_loss_sum(model, rows, torch.float32)
    )
    none = ConversationRows(rows.ids, 0 * rows.weights, rows.documents)
    assert answer_loss_sum(model, none, torch.float32) == 0
