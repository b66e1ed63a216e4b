"""A set of pairs as ids: the better answer, then the worse one, each a conversation of its own.

The hash of the first question decides what is held out, as in conversations.py: no question is on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mini_llm import log
from mini_llm.data.sources import find_files
from mini_llm.errors import UserError
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.conversations import ConversationSet, SetBuilder, is_held_out
from mini_llm.tune.encode import encode
from mini_llm.tune.formats import Conversation
from mini_llm.tune.preference import Pair, read_pairs

Encoded = tuple[list[int], list[bool]]  # ids, and which of them are learned


@dataclass
class PairCounts:
    """What became of the pairs that were read."""

    read: int = 0
    held_out: int = 0
    left_out: int = 0

    def __str__(self) -> str:
        parts = [f"{self.read:,} pairs", f"{self.held_out:,} of them held out"]
        if self.left_out:
            parts.append(f"{self.left_out:,} left out, of which an answer does not fit into block_size")
        return ", ".join(parts)


def read_pair_set(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    block_size: int,
    val_fraction: float,
    merge_turns: bool = False,
) -> tuple[ConversationSet, ConversationSet, PairCounts]:
    """Return pairs to learn from, pairs held out, and what became of all that were read.

    Conversation 2i is the better answer of pair i, conversation 2i + 1 the worse one.

    Raises:
        UserError: as `find_files` and `read_pairs`, or nothing is left to learn from.
    """
    counts, sides = PairCounts(), {"train": SetBuilder(), "val": SetBuilder()}
    for path in find_files(sources):
        for pair in read_pairs(path, merge_turns=merge_turns):
            counts.read += 1
            both = encode_pair(tokenizer, pair)
            if max(len(ids) for ids, _ in both) > block_size + 1:
                counts.left_out += 1
                continue
            side = "val" if is_held_out(pair.chosen.messages, val_fraction) else "train"
            counts.held_out += side == "val"
            for conversation, (ids, learned) in zip((pair.chosen, pair.rejected), both, strict=True):
                sides[side].add(conversation, ids, learned)
    train, val = sides["train"].build(), sides["val"].build()
    if not train.n:
        raise UserError(f"nothing to learn in {', '.join(sources)}: {counts}", "give more data, or a larger block_size")
    log.info(f"{counts}; answers of {_mean(train, 0):.0f} tokens are preferred to answers of {_mean(train, 1):.0f}")
    return train, val, counts


def encode_pair(tokenizer: Tokenizer, pair: Pair) -> tuple[Encoded, Encoded]:
    """Return ids of both answers with their question, and which of them are learned.

    An answer that was cut off loses its end: else the model would learn not to stop where it never had.

    Raises:
        UserError: as `encode`.
    """
    chosen, rejected = (_encoded(tokenizer, side, stopped)
                        for side, stopped in zip((pair.chosen, pair.rejected), pair.stopped, strict=True))  # fmt: skip
    return chosen, rejected


def _encoded(tokenizer: Tokenizer, conversation: Conversation, stopped: bool) -> Encoded:
    ids, learned = encode(tokenizer, conversation)
    if not stopped:
        end = len(learned) - 1 - learned[::-1].index(True)  # the marker
        ids, learned = ids[:end], learned[:end]
    if not any(learned):
        raise UserError(f"{conversation.place}: an answer without a token")
    return ids, learned


def _mean(pairs: ConversationSet, side: int) -> float:
    """Return how many tokens are learned of the answers of one side, on average."""
    lengths = [int(pairs.learned[a:b].sum()) for a, b in zip(pairs.starts[:-1], pairs.starts[1:], strict=True)]
    return sum(lengths[side::2]) / (len(lengths) / 2)
