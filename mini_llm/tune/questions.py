"""Questions whose answers can be checked, as ids: made by program (`task`) or of files, and some of each held out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from mini_llm import log
from mini_llm.data.records import nobody, read_each
from mini_llm.errors import UserError
from mini_llm.tokenizer.chat import encode_chat
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.asked import Asked, read_asked
from mini_llm.tune.conversations import files_of, is_held_out
from mini_llm.tune.rl_config import RlConfig
from mini_llm.tune.skills import Side, exercises
from mini_llm.tune.skills.write import material_of


@dataclass(frozen=True)
class Question:
    """What is asked, up to where the model answers, and what is right."""

    ids: list[int]
    reference: str
    check: str  # a name of CHECKS
    place: str  # "data.jsonl:12", or the skill that it is of


def read_questions(config: RlConfig, tokenizer: Tokenizer) -> tuple[list[Question], list[Question]]:
    """Return the questions to learn from and those held out: skills with other arguments, files by their questions.

    Raises:
        UserError: a file or an object in it cannot be read, or nothing is left of either.
        UsageError: no task has that name.
    """
    learned, held_out, too_long = list[Question](), list[Question](), 0
    room = min(config.block_size + 1, config.model.max_seq_len) - config.max_new_tokens
    for asked, is_new in _all(config):
        ids = encode_chat(tokenizer, asked.messages)
        if len(ids) > room:
            too_long += 1
        else:
            (held_out if is_new else learned).append(Question(ids, asked.answer, asked.check, asked.source))
    text = f", {too_long:,} left out: too long for block_size less max_new_tokens" if too_long else ""
    counts = f"{len(learned):,} questions, {len(held_out):,} more held out{text}"
    if not (learned and held_out):
        raise UserError(f"not enough to learn from: {counts}", "give more data, a larger val_fraction or block_size")
    log.info(counts)
    return learned, held_out


def fingerprint(questions: Iterable[Question], beside: str = "") -> str:
    """Return "sha256:" and the hash of all that is asked and of what is right, and of what is learned `beside` it."""
    digest = hashlib.sha256(beside.encode())
    for question in questions:
        digest.update(repr((question.ids, question.reference, question.check)).encode())
    return f"sha256:{digest.hexdigest()}"


def _all(config: RlConfig) -> Iterator[tuple[Asked, bool]]:
    """Yield what is asked, and whether it is held out."""
    material = material_of(config.corpus, config.name) if config.task else None
    sides: list[tuple[Side, int]] = [("train", config.made), ("new", config.eval_questions)]
    n_made, done = len(config.task) * sum(n for _, n in sides), 0
    with log.count_progress("making questions", n_made, "questions") if n_made else nullcontext(nobody) as show:
        for task, (side, n) in itertools.product(config.task, sides):
            for made in exercises(task, n, seed=config.seed, arguments=side, material=material):
                yield Asked(made.messages, made.answer, made.check, task), side == "new"
                done += 1
                show(done)
    read = partial(read_asked, merge_turns=config.merge_turns)
    for asked in read_each(files_of(config.data, "data"), read, "reading questions") if config.data else ():
        yield asked, is_held_out(asked.messages, config.val_fraction)
