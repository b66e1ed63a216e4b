"""The formats of preferences: a question with two answers, the better and the worse, detected by their keys.

| keys beside `chosen` and `rejected` | known as |
|---|---|
| `prompt` or `question` (`system`), a text or messages | explicit prompt: Hugging Face, Orca, UltraFeedback |
| none: two whole conversations that begin alike, as messages or as HH-RLHF's text | implicit prompt |
| `conversations`, `messages` or `instruction` | LLaMA-Factory |

An answer is a text, a message or a list of messages. A message with `"stopped": false` was cut off: its end is not
learned from, for the model never wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.data.records import Tell, nobody, read_records
from mini_llm.errors import UserError
from mini_llm.tokenizer.chat import Message
from mini_llm.tune.formats import Conversation, checked, message_of, paragraphs, turns_of

WANTED = "dpo wants chosen and rejected, with a prompt or as conversations that begin alike"
HH = re.compile(r"\n\n(Human|Assistant):")
PROMPT_KEYS = ("prompt", "question", "conversations", "messages", "instruction")


@dataclass(frozen=True)
class Pair:
    """A question, and two answers to it."""

    chosen: Conversation  # the whole of it: the question, then the better answer, which alone is learned
    rejected: Conversation
    stopped: tuple[bool, bool]  # whether each answer was written to its end
    place: str  # "data.jsonl:12"


@dataclass(frozen=True)
class _Answer:
    messages: list[Message]
    stopped: bool


def read_pairs(path: Path, *, merge_turns: bool = False, tell: Tell = nobody) -> Iterator[Pair]:
    """Yield the pairs of a file, all of one format; `tell` as for `read_records`.

    Raises:
        UserError: with file and line: no pair, no common question, equal answers, and all that `read_conversations`
            refuses.
    """
    first: tuple[str, str | None] | None = None
    for place, record in read_records(path, tell):
        key = _prompt_key(record, place)
        if first is None:
            first = place, key
        elif first[1] != key:
            raise UserError(
                f"{place}: other keys than {first[0]} ({', '.join(sorted(record)[:6])})",
                "keep one format in a file; several files may have several",
            )
        yield _pair(record, key, place, merge_turns)


def _prompt_key(record: dict[str, Any], place: str) -> str | None:
    """Return the key that holds the question; None: it is where both conversations begin alike."""
    missing = [key for key in ("chosen", "rejected") if key not in record]
    if missing:
        keys = ", ".join(sorted(record)[:8]) or "(none)"
        raise UserError(f"{place}: no {' and no '.join(missing)} in the keys {keys}", WANTED)
    return next((key for key in PROMPT_KEYS if key in record), None)


def _pair(record: dict[str, Any], key: str | None, place: str, merge_turns: bool) -> Pair:
    chosen, rejected = (_answer(record[side], f"{place}, {side}") for side in ("chosen", "rejected"))
    # UltraFeedback has a prompt and whole conversations too: it must not be asked twice.
    if key is None or all(answer.messages[0].role != "assistant" for answer in (chosen, rejected)):
        prompt = _common(chosen, rejected, place)
    else:
        prompt = _prompt(record, key, place)
    if prompt[-1].role != "user":
        raise UserError(f"{place}: the prompt does not end with a question of the user")
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if {answer.messages[0].role, answer.messages[-1].role} != {"assistant"}:
            raise UserError(f"{place}: {side} is no answer of the assistant to the prompt", WANTED)
    if chosen.messages == rejected.messages and chosen.stopped == rejected.stopped:
        raise UserError(f"{place}: chosen and rejected are the same", "leave such rows out: they say nothing")
    sides = [_whole(prompt, answer, f"{place}, {side}", merge_turns)
             for side, answer in (("chosen", chosen), ("rejected", rejected))]  # fmt: skip
    return Pair(sides[0], sides[1], (chosen.stopped, rejected.stopped), place)


def _prompt(record: dict[str, Any], key: str, place: str) -> list[Message]:
    system = record.get("system")
    turns = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    value = record[key]
    if key == "instruction":
        value = paragraphs(value, record.get("input", ""), place)
    if isinstance(value, str) and key not in ("conversations", "messages"):
        return [*turns, *(_from_hh(value) or [Message("user", value)])]
    return [*turns, *_messages(turns_of(value, place), place)]


def _answer(value: Any, place: str) -> _Answer:
    if isinstance(value, str):
        return _Answer(_from_hh(value) or [Message("assistant", value)], True)
    turns = turns_of([value] if isinstance(value, dict) else value, place)
    return _Answer(_messages(turns, place), turns[-1].get("stopped") is not False)


def _messages(turns: list[dict[str, Any]], place: str) -> list[Message]:
    names = ("role", "content") if "role" in turns[0] else ("from", "value")
    return [message_of(turn, *names, place)[0] for turn in turns]


def _from_hh(text: str) -> list[Message]:
    r"""Return the turns of "\n\nHuman: .. \n\nAssistant: ..", the form of HH-RLHF; none for any other text.

    A last turn of the assistant that is empty is where the answer goes.
    """
    if not text.startswith("\n\nHuman:"):
        return []
    parts = HH.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(roles[name], said.strip()) for name, said in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns[-1] == Message("assistant", "") else turns


def _common(chosen: _Answer, rejected: _Answer, place: str) -> list[Message]:
    """Return the turns with which both begin, and take them away."""
    both = zip(chosen.messages, rejected.messages, strict=False)
    n = next((n for n, (a, b) in enumerate(both) if a != b), min(len(chosen.messages), len(rejected.messages)))
    n = min(n, len(chosen.messages) - 1, len(rejected.messages) - 1)  # equal ones are told by their own name
    if n < 1:
        raise UserError(f"{place}: chosen and rejected do not begin with the same question", WANTED)
    prompt = chosen.messages[:n]
    for answer in (chosen, rejected):
        del answer.messages[:n]
    return prompt


def _whole(prompt: list[Message], answer: _Answer, place: str, merge_turns: bool) -> Conversation:
    """Return the question with an answer, of which nothing but the answer is learned."""
    turns = [(message, False) for message in prompt]
    turns += [(message, message.role == "assistant") for message in answer.messages]
    return checked(turns, place, merge_turns)
