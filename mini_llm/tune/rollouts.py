"""Rollouts: the model's own answers, as a pure function of (weights, seed, step, question, number).

The engine draws its n-th token by a hash of the answer's seed and n, whoever else is being written meanwhile. So
answers need not be stored: a run that goes on from a checkpoint writes the same ones again, to the bit. An engine
remembers what it read under the weights of then: each batch of answers gets a new one, which costs a millisecond.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mini_llm.inference.engine.engine import Engine
from mini_llm.inference.engine.request import Request
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.chat import turn_ends
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.conversations import ConversationSet
from mini_llm.tune.lora import plain_copy
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.questions import Question
from mini_llm.tune.rewards import reward
from mini_llm.tune.rows import ConversationRows

SLOTS = 64  # answers that are written at once


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and what it is worth."""

    question: Question
    ids: list[int]  # with the one that ended it
    text: str
    finished: bool
    reward: float


def seed_of(*numbers: int | str) -> int:
    """Return a seed below 2^63 that is a hash of `numbers`."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


@contextmanager
def quiet(model: Transformer) -> Iterator[None]:
    """Let a model in training write or be looked at: without dropout, and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def write_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    seeds: Sequence[int],
    *,
    sampling: SamplingParams,
    max_new_tokens: int,
    before_step: Callable[[], None] = lambda: None,
    source: str = "memory",
) -> list[Answer]:
    """Return an answer to each question, with the seed of the same place; the weights stay where they are.

    `before_step` is called before each token; it may raise, to stop in the middle.

    Raises:
        UserError: the weights of `source` give scores that are not finite.
    """
    n_ids = min(tokenizer.vocab_size, model.config.vocab_size)
    eos_ids = {i for i in (*tokenizer.eos_ids, *turn_ends(tokenizer)) if i < n_ids}
    model = plain_copy(model)  # of LoRA's sums; what is no sum is shared
    with torch.inference_mode():
        engine = Engine(model, vocab_size=n_ids, eos_ids=eos_ids, source=source, max_slots=SLOTS)
        handles = [
            engine.submit(Request(prompt_ids=q.ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed))
            for q, seed in zip(questions, seeds, strict=True)
        ]
        going = True
        while going:
            before_step()
            going = engine.step()
        written = [
            (q, list(handle), handle.finish_reason == "stop") for q, handle in zip(questions, handles, strict=True)
        ]
    return [judged(tokenizer, question, ids, finished) for question, ids, finished in written]


def judged(tokenizer: Tokenizer, question: Question, ids: list[int], finished: bool) -> Answer:
    """Return an answer with its reward."""
    text = tokenizer.decode(ids[:-1] if finished else ids)
    return Answer(question, ids, text, finished, reward(question.check, text, question.reference, finished=finished))


def packed(
    answers: Sequence[Answer], weights: Sequence[float], *, block_size: int, pad_id: int, multiple: int
) -> ConversationRows:
    """Return rows that hold each question with its answer, whose tokens have the answer's weight.

    Rows of padding make their number a multiple: torch.compile wants every micro-batch in one shape.
    """
    texts = [np.array([*a.question.ids, *a.ids], np.uint32) for a in answers]
    counts = [
        np.r_[np.zeros(len(a.question.ids)), np.full(len(a.ids), weight)].astype(np.float32)
        for a, weight in zip(answers, weights, strict=True)
    ]
    starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    nothing = np.zeros(0)
    ids, learned = np.concatenate([nothing.astype(np.uint32), *texts]), np.concatenate([nothing, *counts])
    plan = PackedRows(ConversationSet(ids, learned, starts, 0), block_size=block_size, pad_id=pad_id, seed=0)
    rows = plan.in_order(list(range(plan.n_rows)))
    return ConversationRows.joined([rows, _padding(-len(rows) % multiple if len(rows) else multiple, rows, pad_id)])


def _padding(n: int, like: ConversationRows, pad_id: int) -> ConversationRows:
    shape = (n, like.ids.shape[1])
    return ConversationRows(
        torch.full(shape, pad_id, dtype=torch.int64), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    )
