"""What is asked, with a right answer and the check that knows others: by skills made by program, or from files.

A file's objects have `question`, `prompt` or `messages`, with `answer`, `ground_truth` or `solution`, and perhaps
`check`, a name of checks.py. Where there is none, a right answer that is a number is looked for as the last number of
what is said ("The answer is 7."), as GSM8K's are judged; any other must be said exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.data.records import Tell, nobody, read_each, read_records
from mini_llm.data.sources import find_files
from mini_llm.errors import UsageError, UserError
from mini_llm.tokenizer.chat import Message
from mini_llm.tune.checks import check_named
from mini_llm.tune.formats import conversation_of
from mini_llm.tune.skills.write import Wish, material_of, mixed, parse_counts

ANSWERS = ("answer", "ground_truth", "solution")
ASKED = ("question", "prompt", "messages")
WANTED = "questions have question, prompt or messages, and answer, ground_truth or solution, and perhaps check"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Asked:
    """A conversation up to a question, and how answers are judged."""

    messages: list[Message]
    answer: str
    check: str  # a name of CHECKS
    source: str  # the skill, or "data.jsonl:12"


def asked_of(
    tasks: str, files: Sequence[str], *, n: int, seed: int, corpus: Sequence[str] = (), name: str = "Mini-LLM"
) -> list[Asked]:
    """Return the questions of skills ("spelling,copying=300") or of files.

    Raises:
        UsageError: neither or both are named, or no such skill.
        UserError: a file or an object in it cannot be read.
    """
    if bool(tasks) == bool(files):
        raise UsageError(
            "what is to be asked?", "--tasks spelling,copying or --prompts questions.jsonl, one of the two"
        )
    if files:
        found = list(read_each(find_files(files), read_asked, "reading questions"))
        if not found:
            raise UserError(f"no question in {', '.join(files)}", WANTED)
        return found
    made = mixed(Wish(parse_counts(tasks, n), seed), material_of(corpus, name))
    return [Asked(one.messages, one.answer, one.check, one.skill) for one in made]


def read_asked(path: Path, *, merge_turns: bool = False, tell: Tell = nobody) -> Iterator[Asked]:
    """Yield the questions of a file. Of GSM8K's answers, and others like them, what stands after `####` counts.

    `tell` is as for `read_records`.

    Raises:
        UserError: with file and line.
    """
    for place, record in read_records(path, tell):
        key = next((key for key in ANSWERS if key in record), None)
        asked = next((key for key in ASKED if key in record), None)
        if key is None or asked is None:
            raise UserError(f"{place}: no {'answer' if key is None else 'question'} to check by", WANTED)
        answer = _reference(record[key], place)
        kind = "messages" if isinstance(record[asked], list) else "question"
        beside: dict[str, Any] = {key: record[key] for key in ("system", "system_prompt", "context") if key in record}
        said = conversation_of({kind: record[asked], "answer": answer, **beside}, place, merge_turns=merge_turns)
        if len([m for m in said.messages if m.role == "user"]) < 1 or said.messages[-1].content != answer:
            raise UserError(f"{place}: the messages must end with the user's question", WANTED)
        check = record.get("check", "number" if NUMBER.fullmatch(answer) else "exact")
        if not isinstance(check, str):
            raise UserError(f"{place}: check must be the name of a check, not {str(check)[:40]}")
        check_named(check, place)
        yield Asked(said.messages[:-1], answer, check, place)


def _reference(value: Any, place: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place}: the right answer is no number: {value}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: the right answer is a {type(value).__name__}, not a text or a number")
    return str(value).rpartition("####")[2].strip()
