"""The formats of conversations that people have, detected by their keys and turned into one: messages with roles.

| keys | known as |
|---|---|
| `messages` of `{role, content}` | OpenAI, Hugging Face; minimind with `conversations` |
| `conversations` of `{from, value}` | ShareGPT |
| `instruction`, `output` (`input`, `history`) | Alpaca |
| `instruction`, `response` (`context`) | Dolly |
| `prompt`, `completion` | prompt and completion, as texts or messages |
| `question` or `prompt`, and `answer` (`context`) | questions with an answer |
| `messages` up to a question, and `answer` (`check`) | verifiable: what `mini-llm skills` writes |

Beside each, `system` or `system_prompt` is what the model is told first. Other keys are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.data.records import Tell, nobody, read_records
from mini_llm.errors import UserError, did_you_mean
from mini_llm.tokenizer.chat import Message

OWN = ("assistant", "gpt", "chatgpt", "bard", "bing", "model", "bot", "ai", "function_call")
RESULTS = ("tool", "observation", "function")  # whose turns are what a call gave
# What others call the three roles. A tool's result is told to the model as a user's message is.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", *RESULTS), "user"),
    **dict.fromkeys(OWN, "assistant"),
}
Reader = Callable[[dict[str, Any], str], list[tuple[Message, bool]]]
LEARNABLE = "sft wants messages, conversations, instruction and output, prompt and completion, or question and answer"


@dataclass(frozen=True)
class Conversation:
    """Messages of one conversation; `learned` says for each whether it is an answer to learn from."""

    messages: list[Message]
    learned: list[bool]
    place: str  # "data.jsonl:12"


def read_conversations(path: Path, *, merge_turns: bool = False, tell: Tell = nobody) -> Iterator[Conversation]:
    """Yield the conversations of a file, all of one format; `tell` as for `read_records`.

    Raises:
        UserError: with file and line: an unknown format or role, no answer, an empty one, two turns of one role.
    """
    reader: Reader | None = None
    first = ""
    for place, record in read_records(path, tell):
        found = detect(record, place)
        if reader is None:
            reader, first = found, place
            if "tools" in record:
                log.warn(f"{place}: the list of tools is not read: the model learns to call what it was not told of")
        elif found is not reader:
            raise UserError(
                f"{place}: other keys than {first} ({', '.join(sorted(record)[:6])})",
                "keep one format in a file; several files may have several",
            )
        yield _read_by(reader, record, place, merge_turns)


def detect(record: dict[str, Any], place: str) -> Reader:
    """Return the reader of a record's format.

    Raises:
        UserError: no format of conversations has these keys; it says what they are instead.
    """
    keys = set(record)
    if {"chosen", "rejected"} & keys:
        raise UserError(
            f"{place}: chosen and rejected are pairs of preferences, not conversations", f"mini-llm dpo; {LEARNABLE}"
        )
    if "label" in keys and {"prompt", "completion"} <= keys:
        raise UserError(f"{place}: completions with a label of good or bad (KTO)", "keep the rows whose label is true")
    for key in ("messages", "conversations"):
        if key in keys:
            return _messages if key == "messages" else _conversations
    for reader, wanted in (
        (_alpaca, {"instruction", "output"}),
        (_dolly, {"instruction", "response"}),
        (_completion, {"prompt", "completion"}),
        (_question, {"question", "answer"}),
        (_question, {"prompt", "answer"}),
    ):
        if wanted <= keys:
            return reader
    if "text" in keys:
        raise UserError(f"{place}: only text, which is for `mini-llm prepare`", LEARNABLE)
    raise UserError(f"{place}: no conversation in the keys {', '.join(sorted(keys)[:8]) or '(none)'}", LEARNABLE)


def conversation_of(record: dict[str, Any], place: str, *, merge_turns: bool = False) -> Conversation:
    """Return the conversation of one object.

    Raises:
        UserError: as `read_conversations`.
    """
    return _read_by(detect(record, place), record, place, merge_turns)


def _read_by(reader: Reader, record: dict[str, Any], place: str, merge_turns: bool) -> Conversation:
    return checked(with_system(record, reader(record, place), place), place, merge_turns)


def with_system(record: dict[str, Any], turns: list[tuple[Message, bool]], place: str) -> list[tuple[Message, bool]]:
    """Return the turns behind the record's own system message, where it has one and they do not begin with one.

    Raises:
        UserError: it is no text.
    """
    told = text_of(record.get("system") or record.get("system_prompt") or "", place)
    if not told.strip() or turns[0][0].role == "system":
        return turns
    return [(Message("system", told), False), *turns]


# --- one reader a format ---------------------------------------------------------------------------------------------


def _messages(record: dict[str, Any], place: str) -> list[tuple[Message, bool]]:
    found = results_joined(turns_of(record["messages"], place), "role", "content")
    turns = [message_of(turn, "role", "content", place) for turn in found]
    if "answer" in record and turns[-1][0].role == "user":
        # The earlier turns are part of the question, but for answers whose weight says that they are right too.
        turns = [(said, learned and "weight" in turn) for (said, learned), turn in zip(turns, found, strict=True)]
        turns.append((Message("assistant", text_of(record["answer"], place)), True))
    return turns


def _conversations(record: dict[str, Any], place: str) -> list[tuple[Message, bool]]:
    turns = turns_of(record["conversations"], place)
    names = ("role", "content") if "role" in turns[0] else ("from", "value")
    return [message_of(turn, *names, place) for turn in results_joined(turns, *names)]


def _alpaca(record: dict[str, Any], place: str) -> list[tuple[Message, bool]]:
    return _instruction(record, record.get("input", ""), record["output"], place)


def _dolly(record: dict[str, Any], place: str) -> list[tuple[Message, bool]]:
    return _instruction(record, record.get("context", ""), record["response"], place)


def _instruction(record: dict[str, Any], more: Any, answer: Any, place: str) -> list[tuple[Message, bool]]:
    turns: list[tuple[Message, bool]] = []
    history = record.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise UserError(f"{place}: history must be pairs of question and answer")
        turns += _pair(text_of(pair[0], place), text_of(pair[1], place))
    return turns + _pair(paragraphs(record["instruction"], more, place), text_of(answer, place))


def _completion(record: dict[str, Any], place: str) -> list[tuple[Message, bool]]:
    if isinstance(record["prompt"], list):
        turns = [*turns_of(record["prompt"], place), *turns_of(record["completion"], place)]
        return [message_of(turn, "role", "content", place) for turn in turns]
    return _pair(text_of(record["prompt"], place), text_of(record["completion"], place))


def _question(record: dict[str, Any], place: str) -> list[tuple[Message, bool]]:
    asked = record["question"] if "question" in record else record["prompt"]
    return _pair(paragraphs(asked, record.get("context", ""), place), text_of(record["answer"], place))


def paragraphs(first: Any, second: Any, place: str) -> str:
    """Return two texts as paragraphs, or the one that says something.

    Raises:
        UserError: as `text_of`.
    """
    return "\n\n".join(text for part in (first, second) if (text := text_of(part, place)).strip())


def _pair(question: str, answer: str) -> list[tuple[Message, bool]]:
    return [(Message("user", question), False), (Message("assistant", answer), True)]


def turns_of(value: Any, place: str) -> list[dict[str, Any]]:
    """Return the list of turns that `value` is, or is as JSON.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, str):  # minimind keeps lists as JSON in a string
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise UserError(f"{place}: the conversation is not a list of messages")
    return value


def results_joined(turns: list[dict[str, Any]], role_key: str, text_key: str) -> list[dict[str, Any]]:
    """Return the turns with the results of several calls at once as one: a line each."""
    joined: list[dict[str, Any]] = []
    for turn in turns:
        before = joined[-1] if joined else {}
        if turn.get(role_key) in RESULTS and before.get(role_key) in RESULTS:
            first, second = before.get(text_key), turn.get(text_key)
            if isinstance(first, str) and isinstance(second, str):
                joined[-1] = {**before, text_key: f"{first}\n{second}"}
                continue
        joined.append(turn)
    return joined


def message_of(turn: dict[str, Any], role_key: str, text_key: str, place: str) -> tuple[Message, bool]:
    """Return the message of a turn, and whether it is an answer to learn from.

    Raises:
        UserError: an unknown role, or contents that are no text.
    """
    role = turn.get(role_key)
    if not isinstance(role, str) or role.lower() not in ROLES:
        hint = did_you_mean(role, sorted(ROLES)) if isinstance(role, str) else ""
        raise UserError(f"{place}: unknown role {role!r}{hint}", f"known: {', '.join(ROLES)}")
    calls = turn.get("tool_calls") or []
    if text_key not in turn and not calls:  # also a null, which records leave out
        raise UserError(f"{place}: a message of the {ROLES[role.lower()]} has no {text_key}")
    text = text_of(turn.get(text_key, ""), place)
    for call in calls if isinstance(calls, list) else [calls]:
        text += f"<tool_call>{json.dumps(_call(call, place), ensure_ascii=False)}</tool_call>"
    plain_role = ROLES[role.lower()]
    return Message(plain_role, text), plain_role == "assistant" and _counts(turn.get("weight", 1), place)


def _counts(weight: Any, place: str) -> bool:
    """Tell whether an answer is learned: OpenAI's `weight`, which is 0 or 1."""
    if weight not in (0, 1):
        raise UserError(f"{place}: the weight of an answer must be 0 or 1, not {str(weight)[:40]}")
    return weight == 1


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not (isinstance(function, dict) and isinstance(name := function.get("name"), str) and name.strip()):
        raise UserError(f"{place}: a tool call without the name of its function")
    return {"name": name, "arguments": _loads(function.get("arguments", {}))}


def _loads(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments


def text_of(value: Any, place: str) -> str:
    """Return the text that `value` is, or that its parts make.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        return "".join(text_of(part.get("text"), place) for part in value)
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        kinds = sorted({str(part.get("type")) for part in value})
        raise UserError(f"{place}: contents of type {', '.join(kinds)}: only text is learned")
    raise UserError(f"{place}: a text is of type {type(value).__name__}, not a string")


def checked(turns: list[tuple[Message, bool]], place: str, merge_turns: bool) -> Conversation:
    """Return the conversation of these turns.

    Raises:
        UserError: two turns of one role, no answer, an empty one, or one that answers nobody.
    """
    kept: list[tuple[Message, bool]] = []
    for message, learned in turns:
        if kept and kept[-1][0].role == message.role:
            if not merge_turns:
                raise UserError(
                    f"{place}: two turns of the {message.role} in a row",
                    "sft and dpo join them by --merge-turns, rl by merge_turns=true",
                )
            before, was = kept.pop()
            message, learned = Message(message.role, f"{before.content}\n{message.content}"), learned and was
        kept.append((message, learned))
    roles = [message.role for message, _ in kept]
    if "assistant" not in roles:
        raise UserError(f"{place}: no turn of the assistant, so there is nothing to learn")
    if next(role for role in roles if role != "system") == "assistant":
        raise UserError(f"{place}: the assistant speaks first, and answers nobody")
    if any(m.role == "assistant" and not m.content.strip() for m, _ in kept):
        raise UserError(f"{place}: an empty answer")
    return Conversation([m for m, _ in kept], [learned for _, learned in kept], place)
