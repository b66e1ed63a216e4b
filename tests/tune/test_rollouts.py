"""Answers are a pure function of weights and seed; what is learned of them is the expected reward's gradient."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch

from mini_llm.checkpoint import load_model
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.answer_loss import answer_loss_sum
from mini_llm.tune.look import look
from mini_llm.tune.questions import Question
from mini_llm.tune.rewards import advantages
from mini_llm.tune.rollouts import Answer, packed, seed_of, write_answers

AS_IT_IS = SamplingParams(temperature=1.0, top_p=1.0, top_k=0)


@pytest.fixture
def model(answering: Path) -> Transformer:
    return load_model(resolve_checkpoint(answering), device="cpu", dtype=torch.float32).requires_grad_(True)


@pytest.fixture
def questions(chat_tokenizer: Tokenizer) -> list[Question]:
    pairs = [("catdog", "cat dog"), ("owlant", "owl ant"), ("a" * 60, "?")]
    ids = [encode_chat(chat_tokenizer, [Message("user", f"Part {joined}.")]) for joined, _ in pairs]
    return [Question(i, apart, "exact", "here") for i, (_, apart) in zip(ids, pairs, strict=True)]


def write(model: Transformer, tokenizer: Tokenizer, wanted: list[tuple[Question, int]]) -> list[list[int]]:
    asked, seeds = [q for q, _ in wanted], [seed for _, seed in wanted]
    return [a.ids for a in write_answers(model, tokenizer, asked, seeds, sampling=AS_IT_IS, max_new_tokens=12)]


def test_answers_written_together_are_those_of_each_alone(
    model: Transformer, chat_tokenizer: Tokenizer, questions: list[Question]
) -> None:
    wanted = [(q, seed_of(1, 2, place, n)) for place, q in enumerate(questions) for n in range(30)]  # above SLOTS
    together = write(model, chat_tokenizer, wanted)
    assert len({tuple(ids) for ids in together}) > 30
    assert together == [write(model, chat_tokenizer, [one])[0] for one in wanted]
    assert together[::-1] == write(model, chat_tokenizer, wanted[::-1])


def test_after_an_update_in_place_answers_are_those_of_a_fresh_model(
    model: Transformer, chat_tokenizer: Tokenizer, questions: list[Question]
) -> None:
    wanted = [(q, n) for q in questions for n in range(8)]
    before = write(model, chat_tokenizer, wanted)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    after = write(model, chat_tokenizer, wanted)
    assert after != before
    assert after == write(copy.deepcopy(model), chat_tokenizer, wanted)


def test_the_model_stays_in_training_and_what_it_writes_has_no_dropout(
    model: Transformer, chat_tokenizer: Tokenizer, questions: list[Question]
) -> None:
    before = write(model, chat_tokenizer, [(questions[0], 1)])
    noisy = Transformer(model.config.model_copy(update={"dropout": 0.5})).train()
    noisy.load_state_dict(model.state_dict())
    assert write(noisy, chat_tokenizer, [(questions[0], 1)]) == before
    assert noisy.training


def test_writing_stops_when_it_is_told_to(
    model: Transformer, chat_tokenizer: Tokenizer, questions: list[Question]
) -> None:
    steps = itertools.count()

    def before_step() -> None:
        if next(steps) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_answers(
            model, chat_tokenizer, questions, [1, 2, 3], sampling=AS_IT_IS, max_new_tokens=50, before_step=before_step
        )
    assert next(steps) == 4


def test_rows_hold_each_answer_with_its_weight(questions: list[Question]) -> None:
    answers = [Answer(q, [7] * n, "", True, 0.0) for q, n in zip(questions, (1, 3, 2), strict=True)]
    rows = packed(answers, [0.5, -0.25, 1.0], block_size=100, pad_id=0, multiple=4)
    assert rows.ids.shape == (4, 101)  # padded to a multiple
    counted = sorted(zip(rows.weights[rows.weights != 0].tolist(), rows.ids[rows.weights != 0].tolist(), strict=True))
    assert counted == [(-0.25, 7)] * 3 + [(0.5, 7)] + [(1.0, 7)] * 2
    assert packed([], [], block_size=100, pad_id=0, multiple=4).n_targets() == 0


def test_a_look_sees_what_autograd_sees(model: Transformer, questions: list[Question]) -> None:
    answers = [Answer(q, [30 + n, 40, 50], "", True, 0.0) for n, q in enumerate(questions)]
    rows = packed(answers, [1.0] * 3, block_size=100, pad_id=0, multiple=2)
    start = copy.deepcopy(model)
    seen = look(model, start, rows, torch.float32, batch_size=2)
    assert seen.kl == 0
    assert -seen.logprobs.sum().item() == pytest.approx(answer_loss_sum(model, rows, torch.float32).item(), rel=1e-5)
    with torch.no_grad():
        model.lm_head.weight *= 1.1
    entropy, kl = 0.0, 0.0
    for answer in answers:
        ids = torch.tensor([*answer.question.ids, *answer.ids])[None]
        n = len(answer.ids)
        log_p, log_q = (m(ids[:, :-1])[0, -n:].double().log_softmax(-1) for m in (model, start))
        entropy -= (log_p.exp() * log_p).sum().item() / 9
        kl += (log_p.exp() * (log_p - log_q)).sum().item() / 9
    seen = look(model, start, rows, torch.float32, batch_size=2)
    assert seen.entropy == pytest.approx(entropy, rel=1e-5)
    assert seen.kl == pytest.approx(kl, rel=1e-3)
    assert kl > 0


# --- a world so small that all answers can be counted: six tokens, one of them the end, at most two in an answer ---

END, TOKENS = 3, range(6)
ALL = [(END,), *((first, second) for first in TOKENS if first != END for second in TOKENS)]
WORTH = {answer: 1.0 if answer == (1, END) else 0.25 * (answer[0] == 2) for answer in ALL}


def expected_reward(model: Transformer) -> float:
    """Return the sum of p(answer) * reward over all answers, in the model's own precision."""
    total = 0.0
    for answer, worth in WORTH.items():
        log_p = model(torch.tensor([[5, *answer]])).log_softmax(-1)[0]
        total += worth * math.exp(sum(log_p[place, token].item() for place, token in enumerate(answer)))
    return total


def test_what_is_learned_is_the_gradient_of_the_expected_reward() -> None:
    """Over all groups of two answers, each with its probability; the mean as baseline halves each one's share."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=6, max_seq_len=8))
    model.init_weights(seed=4)
    with torch.no_grad():
        for p in model.parameters():
            p *= 3  # a model with opinions
    question = Question([5], "", "exact", "here")
    answers = [Answer(question, list(ids), "", True, WORTH[ids]) for ids in ALL]
    log_p = [model(torch.tensor([[5, *a.ids]])).log_softmax(-1)[0] for a in answers]
    p = [math.exp(sum(q[i, t].item() for i, t in enumerate(a.ids))) for q, a in zip(log_p, answers, strict=True)]
    assert sum(p) == pytest.approx(1)
    weights = [0.0] * len(ALL)
    for i, j in itertools.product(range(len(ALL)), repeat=2):
        of_first, of_second = advantages([answers[i].reward, answers[j].reward])
        weights[i] += p[i] * p[j] * of_first
        weights[j] += p[i] * p[j] * of_second
    rows = packed(answers, weights, block_size=31, pad_id=0, multiple=1)
    answer_loss_sum(model, rows, torch.float32).backward()
    draw = torch.Generator().manual_seed(1)
    twin = copy.deepcopy(model).double()
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=draw)
        direction /= direction.norm()
        assert parameter.grad is not None
        slope = -(parameter.grad * direction).sum().item()
        weight, step = dict(twin.named_parameters())[name], 3e-3  # norms compute in float32
        with torch.no_grad():
            weight += step * direction
            higher = expected_reward(twin)
            weight -= 2 * step * direction
            lower = expected_reward(twin)
            weight += step * direction
        assert slope == pytest.approx((higher - lower) / (2 * step), rel=1e-3, abs=1e-6), name
