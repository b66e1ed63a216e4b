"""What is asked, with a right answer and the check that knows others: by skills made by program, or from files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.data.records import read_records
from mini_llm.data.sources import find_files
from mini_llm.errors import UsageError, UserError
from mini_llm.tokenizer.chat import Message
from mini_llm.tune.checks import check_named
from mini_llm.tune.formats import checked, message_of, text_of, turns_of
from mini_llm.tune.skills.write import Wish, material_of, mixed, parse_counts

ANSWERS = ("answer", "ground_truth", "solution")
WANTED = "questions have question, prompt or messages, and answer, ground_truth or solution, and perhaps check"


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
        found = [one for path in find_files(files) for one in _of_file(path)]
        if not found:
            raise UserError(f"no question in {', '.join(files)}", WANTED)
        return found
    made = mixed(Wish(parse_counts(tasks, n), seed), material_of(corpus, name))
    return [Asked(one.messages, one.answer, one.check, one.skill) for one in made]


def _of_file(path: Path) -> Iterator[Asked]:
    for place, record in read_records(path):
        key = next((key for key in ANSWERS if key in record), None)
        said = next((key for key in ("question", "prompt", "messages") if key in record), None)
        if key is None or said is None:
            raise UserError(f"{place}: no {'answer to judge by' if key is None else 'question'}", WANTED)
        answer = _reference(record[key], place)
        # The right answer stands in for the model's: the conversation is checked as every other one.
        turns = [*_turns(record[said], place), (Message("assistant", answer), True)]
        messages = checked(turns, place, merge_turns=False).messages[:-1]
        check = record.get("check", "number" if "####" in str(record[key]) else "exact")
        if not isinstance(check, str):
            raise UserError(f"{place}: check is a {type(check).__name__}, not the name of one")
        check_named(check, place)
        yield Asked(messages, answer, check, place)


def _turns(value: Any, place: str) -> list[tuple[Message, bool]]:
    if isinstance(value, str):
        return [(Message("user", value), False)]
    return [message_of(turn, "role", "content", place) for turn in turns_of(value, place)]


def _reference(value: Any, place: str) -> str:
    """Return a right answer as text; of GSM8K's, what stands after ####."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text_of(value, place).rpartition("####")[2].strip()
