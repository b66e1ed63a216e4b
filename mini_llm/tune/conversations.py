"""A set of conversations as ids: read once, held out by the first question, told in one line.

It is a pure function of files, tokenizer and settings, so that a resumed run has the very same rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_llm import log
from mini_llm.data.records import read_each
from mini_llm.data.sources import find_files
from mini_llm.errors import UsageError, UserError
from mini_llm.tokenizer.chat import Message
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.encode import learned_text, shortened
from mini_llm.tune.formats import Conversation, read_conversations


@dataclass(frozen=True)
class ConversationSet:
    """Conversations one after the other; conversation i is `ids[starts[i] : starts[i + 1]]`."""

    ids: np.ndarray  # uint32
    learned: np.ndarray  # bool, or how much each counts (float32)
    starts: np.ndarray  # (n + 1,), int64
    learned_bytes: int  # of the answers' text

    @property
    def n(self) -> int:
        """The number of conversations."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation."""
        return np.diff(self.starts)

    def fingerprint(self) -> str:
        """Return "sha256:" and the hash of all that is learned from."""
        digest = hashlib.sha256()
        for array in (self.ids, self.learned, self.starts):
            digest.update(np.ascontiguousarray(array).tobytes())
        return f"sha256:{digest.hexdigest()}"


class Encoded(NamedTuple):
    """A conversation with its ids, and which of them are learned."""

    conversation: Conversation
    ids: list[int]
    learned: list[bool]


@dataclass
class Counts:
    """What became of the conversations, or pairs, that were read."""

    kind: str = "conversations"
    too_long: str = "whose first answer does not fit into a row"
    read: int = 0
    held_out: int = 0
    shortened: int = 0
    left_out: int = 0

    def __str__(self) -> str:
        parts = [f"{self.read:,} {self.kind}", f"{self.held_out:,} of them held out"]
        if self.shortened:
            parts.append(f"{self.shortened:,} shortened to whole answers")
        if self.left_out:
            parts.append(f"{self.left_out:,} left out, {self.too_long}")
        return ", ".join(parts)


def read_set(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    block_size: int,
    val_fraction: float,
    merge_turns: bool = False,
    setting: str = "data",
) -> tuple[ConversationSet, ConversationSet, Counts]:
    """Return the conversations to learn from, those held out, and what became of all that were read.

    `setting` is where the sources were named.

    Raises:
        UserError: as `files_of` and `read_conversations`, or nothing is left to learn from.
    """
    counts = Counts()

    def encoded() -> Iterator[list[Encoded]]:
        read = partial(read_conversations, merge_turns=merge_turns)
        for conversation in read_each(files_of(sources, setting), read, "turning conversations into tokens"):
            found = shortened(tokenizer, conversation, block_size + 1)
            counts.shortened += found is not None and found[2]
            yield [] if found is None else [Encoded(conversation, *found[:2])]

    train, val = two_sides(encoded(), counts, val_fraction, sources)
    log.info(f"{counts}; {train.learned.sum():,} of {len(train.ids):,} tokens are learned")
    return train, val, counts


def files_of(sources: Sequence[str], setting: str) -> list[Path]:
    """Return the files behind the sources of a setting, which may be of a run's record: then they may have been moved.

    Raises:
        UserError: as `find_files`; what is not there is told with the setting that says where.
    """
    try:
        return find_files(sources)
    except UserError as problem:
        raise UserError(problem.message, problem.hint or f"say where the files lie: {setting}=FILES") from None


def two_sides(
    found: Iterable[list[Encoded]], counts: Counts, val_fraction: float, sources: Sequence[str]
) -> tuple[ConversationSet, ConversationSet]:
    """Return what to learn from and what is held out, and count; an empty list was too long.

    The hash of the first question decides which side, so that the same question is never on both.

    Raises:
        UserError: nothing is left to learn from.
    """
    sides = {"train": SetBuilder(), "val": SetBuilder()}
    for together in found:
        counts.read += 1
        if not together:
            counts.left_out += 1
            continue
        side = "val" if is_held_out(together[0].conversation.messages, val_fraction) else "train"
        counts.held_out += side == "val"
        for one in together:
            sides[side].add(*one)
    train, val = sides["train"].build(), sides["val"].build()
    if not train.n:
        hint = "give more data, or a larger block_size"
        if counts.held_out:
            hint = f"give more: {enough(1 - val_fraction)} {counts.kind} or more, so that some are not held out"
        raise UserError(f"nothing to learn in {', '.join(sources)}: {counts}", hint)
    return train, val


def refuse_without_held_out(val: ConversationSet, counts: Counts, val_fraction: float) -> None:
    """Refuse a set of which nothing is held out, before anything is computed: nobody could say what is learned.

    Raises:
        UsageError: with how many there are and how many it takes.
    """
    if not val.n:
        n = counts.read - counts.left_out
        raise UsageError(
            f"no {counts.kind[:-1]} is held out of the {n:,} that were found: with val_fraction={val_fraction:g} it "
            f"takes {enough(val_fraction):,} or more, with questions of their own",
            f"give more {counts.kind}, or a larger val_fraction=...",
        )


def enough(share: float) -> int:
    """Return how many things it takes so that a share of all is not empty, in 95 of 100 cases: e^-3 is 5 %."""
    return math.ceil(3 / share)


def tell_of_few(counts: Counts, n_rows: int, rows_per_step: int) -> None:
    """Warn where all that is learned fills less than a step."""
    if n_rows < rows_per_step:
        n = counts.read - counts.left_out - counts.held_out
        log.warn(
            f"{n:,} {counts.kind} to learn from fill {n_rows:,} of the {rows_per_step:,} rows of a step, so that it "
            f"sees some twice: it takes {math.ceil(n * rows_per_step / n_rows):,}, or a smaller batch_size=..."
        )


def is_held_out(messages: Sequence[Message], fraction: float) -> bool:
    """Tell whether the hash of the first question puts a conversation among that share of them."""
    first = next(m.content for m in messages if m.role == "user")
    number = int.from_bytes(hashlib.sha256(first.encode("utf-8", "replace")).digest()[:8], "big")
    return number < fraction * 2**64


class SetBuilder:
    """Collects conversations with their ids."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.learned: list[np.ndarray] = []
        self.n_bytes = 0

    def add(self, conversation: Conversation, ids: list[int], learned: list[bool]) -> None:
        """Take one more; `shortened` gave ids and what is learned of them."""
        self.ids.append(np.array(ids, np.uint32))
        self.learned.append(np.array(learned, bool))
        self.n_bytes += learned_text(conversation.messages, conversation.learned)

    def build(self) -> ConversationSet:
        """Return them one after the other."""
        starts = np.cumsum([0, *(len(ids) for ids in self.ids)], dtype=np.int64)
        empty = np.zeros(0)
        return ConversationSet(
            np.concatenate([*self.ids, empty.astype(np.uint32)]),
            np.concatenate([*self.learned, empty.astype(bool)]),
            starts,
            self.n_bytes,
        )
