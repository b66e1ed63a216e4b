"""Questions whose answers can be checked: the question's ids, a right answer, and the check that knows others.

They are made by program (`task`) or come from files: `question`, `prompt` or `messages`, with `answer`,
`ground_truth` or `solution`, and `check`, a name of checks.py, where there is one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.data.records import read_records
from mini_llm.data.sources import find_files
from mini_llm.errors import UserError
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.checks import check_named
from mini_llm.tune.conversations import is_held_out
from mini_llm.tune.formats import conversation_of
from mini_llm.tune.rl_config import RlConfig
from mini_llm.tune.skills import Side, exercises
from mini_llm.tune.skills.write import material_of

ANSWERS = ("answer", "ground_truth", "solution")
ASKED = ("question", "prompt", "messages")
WANTED = "rl wants question, prompt or messages, and answer, ground_truth or solution"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


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
    for messages, reference, check, place, is_new in _all(config):
        ids = encode_chat(tokenizer, messages)
        if len(ids) > room:
            too_long += 1
        else:
            (held_out if is_new else learned).append(Question(ids, reference, check, place))
    text = f", {too_long:,} left out: too long for block_size less max_new_tokens" if too_long else ""
    counts = f"{len(learned):,} questions, {len(held_out):,} more held out{text}"
    if not (learned and held_out):
        raise UserError(f"not enough to learn from: {counts}", "give more data, a larger val_fraction or block_size")
    log.info(counts)
    return learned, held_out


def fingerprint(questions: Iterable[Question]) -> str:
    """Return "sha256:" and the hash of all that is asked and of what is right."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr((question.ids, question.reference, question.check)).encode())
    return f"sha256:{digest.hexdigest()}"


Asked = tuple[list[Message], str, str, str, bool]  # messages, right answer, check, place, whether it is held out


def _all(config: RlConfig) -> Iterator[Asked]:
    material = material_of(config.corpus, config.name) if config.task else None
    for task in config.task:
        sides: list[tuple[Side, int]] = [("train", config.made), ("new", config.eval_questions)]
        for side, n in sides:
            for made in exercises(task, n, seed=config.seed, arguments=side, material=material):
                yield made.messages, made.answer, made.check, task, side == "new"
    for path in find_files(config.data) if config.data else ():
        for messages, reference, check, place in read_verifiable(path, merge_turns=config.merge_turns):
            yield messages, reference, check, place, is_held_out(messages, config.val_fraction)


def read_verifiable(path: Path, *, merge_turns: bool = False) -> Iterator[tuple[list[Message], str, str, str]]:
    """Yield messages up to the question, a right answer, the name of its check, and the place, of a file's objects.

    Of GSM8K's answers, and others like them, what stands after `####` counts.

    Raises:
        UserError: with file and line.
    """
    for place, record in read_records(path):
        key = next((key for key in ANSWERS if key in record), None)
        asked = next((key for key in ASKED if key in record), None)
        if key is None or asked is None:
            raise UserError(f"{place}: no {'answer' if key is None else 'question'} to check by", WANTED)
        reference = _reference(record[key], place)
        kind = "messages" if isinstance(record[asked], list) else "question"
        said = conversation_of({kind: record[asked], "answer": reference}, place, merge_turns=merge_turns)
        if len([m for m in said.messages if m.role == "user"]) < 1 or said.messages[-1].content != reference:
            raise UserError(f"{place}: the messages must end with the user's question", WANTED)
        check = record.get("check", "number" if NUMBER.fullmatch(reference) else "exact")
        if not isinstance(check, str):
            raise UserError(f"{place}: check must be the name of a check, not {str(check)[:40]}")
        check_named(check, place)
        yield said.messages[:-1], reference, check, place


def _reference(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: the right answer is a {type(value).__name__}, not a text or a number")
    return str(value).rpartition("####")[2].strip()
