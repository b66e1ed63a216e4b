"""A mixture of conversations, as data: how many of each source, how often, and what is left out.

As they are found, conversations are of what was easy to get. A file says what is wanted of each source; the same file
and the same conversations give the same mixture, in whichever order they come.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from mini_llm import log
from mini_llm.config import Config
from mini_llm.data.records import read_each, read_records
from mini_llm.data.sources import find_files
from mini_llm.errors import UsageError, UserError
from mini_llm.files import check_replaceable_lines, new_file
from mini_llm.tokenizer.chat import Message
from mini_llm.tune.formats import Conversation, conversation_of
from mini_llm.user_files import writing_to

MADE_BY = "mini-llm mix"


class Group(Config):
    """What is wanted of one source."""

    of: str  # its name
    keep: int | None = Field(default=None, ge=1)  # so many of them, drawn by their hash; unset: all
    times: int = Field(default=1, ge=1)  # each stands there so often
    most_words: int | None = Field(default=None, ge=1)  # in an answer; conversations with longer ones are left out
    without: tuple[str, ...] = ()  # conversations that say one of these are left out
    say: str = ""  # put behind the question, so that a short answer is what was asked for
    say_below: int = Field(default=6, ge=1)  # only where the answer has fewer words


class Mixture(Config):
    """What `mini-llm mix` reads."""

    shipped: ClassVar[str] = "--mixture configs/chat-mix.yaml"

    key: str = "source"  # whose value says where a conversation is from
    rest: bool = False  # sources that are not named are kept whole
    seed: int = 0
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Found:
    """A conversation, and what else its record holds."""

    conversation: Conversation
    source: str
    licence: str
    order: bytes  # its place in the draw


def mix(sources: Sequence[str], mixture: Mixture, out: Path) -> Counter[str]:
    """Write the mixture and return how many conversations of each source are in it.

    Raises:
        UserError: a file cannot be read or written, a source is not there, or nothing is left.
    """
    check_replaceable_lines(out, lambda first: first.get("made_by") == MADE_BY, "mixture")
    files = find_files(sources)
    if out.exists() and any(out.samefile(path) for path in files):
        raise UsageError(f"{out} is one of the sources", "give another --out")
    wanted = {group.of: group for group in mixture.groups}
    found: dict[str, list[Found]] = {}
    seen, read = set[bytes](), Counter[str]()
    for one in _all(files, mixture):
        read[one.source] += 1
        group = wanted.get(one.source, Group(of=one.source) if mixture.rest else None)
        if group and one.order not in seen and _fits(one, group):
            seen.add(one.order)
            found.setdefault(one.source, []).append(one)
    if missing := [name for name in wanted if name not in read]:
        there = ", ".join(f"{name or '(no name)'} ({n:,})" for name, n in read.most_common(20)) or "none"
        raise UserError(f"no conversation is of the {mixture.key} '{missing[0]}'", f"there are: {there}")
    if not found:
        raise UserError("nothing is left of the conversations", "name what to keep under groups:, or say rest: true")
    chosen: list[tuple[bytes, Found, Group]] = []
    for source, candidates in found.items():
        group = wanted.get(source, Group(of=source))
        for kept in sorted(candidates, key=lambda one: one.order)[: group.keep]:
            chosen += [(hashlib.sha256(kept.order + b"%d" % n).digest(), kept, group) for n in range(group.times)]
    written = Counter(one.source for _, one, _ in chosen)
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_file(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            for _, picked, wish in sorted(chosen, key=itemgetter(0)):  # whoever reads the first lines sees all sources
                file.write(json.dumps(_record(picked, wish), ensure_ascii=False) + "\n")
    for source, n in written.most_common():
        log.info(f"{source}: {n:,} of {read[source]:,}")
    log.info(f"{out}: {written.total():,} conversations")
    return written


def _all(files: Sequence[Path], mixture: Mixture) -> Iterator[Found]:
    for place, record in read_each(files, read_records, "reading conversations"):
        conversation = conversation_of(record, place)
        said = json.dumps([mixture.seed, [[m.role, m.content] for m in conversation.messages]])
        order = hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()
        yield Found(conversation, str(record.get(mixture.key, "")), str(record.get("license", "")), order)


def _fits(one: Found, group: Group) -> bool:
    answers = [m.content for m in one.conversation.messages if m.role == "assistant"]
    too_long = group.most_words is not None and any(len(answer.split()) > group.most_words for answer in answers)
    return not too_long and not any(words in m.content for m in one.conversation.messages for words in group.without)


def _record(one: Found, group: Group) -> dict[str, Any]:
    messages = list(one.conversation.messages)
    for place, (question, answer) in enumerate(itertools.pairwise(messages)):
        is_short = answer.role == "assistant" and len(answer.content.split()) < group.say_below
        if group.say and question.role == "user" and is_short:
            messages[place] = Message("user", f"{question.content} {group.say}")
    turns = []
    for message, learned in zip(messages, one.conversation.learned, strict=True):
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        turns.append(turn if learned or message.role != "assistant" else {**turn, "weight": 0})
    licence = {"license": one.licence} if one.licence else {}
    return {"messages": turns, "source": one.source, **licence, "made_by": MADE_BY}
