"""A set of pairs as ids: the better answer, then the worse one, each a conversation of its own.

The hash of the first question decides what is held out, as in conversations.py: no question is on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from mini_llm import log
from mini_llm.data.records import read_each
from mini_llm.errors import UserError
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.conversations import ConversationSet, Counts, Encoded, files_of, two_sides
from mini_llm.tune.encode import encode
from mini_llm.tune.formats import Conversation
from mini_llm.tune.preference import Pair, read_pairs

Learned = tuple[list[int], list[bool]]  # ids, and which of them are learned


def read_pair_set(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    block_size: int,
    val_fraction: float,
    merge_turns: bool = False,
) -> tuple[ConversationSet, ConversationSet, Counts]:
    """Return pairs to learn from, pairs held out, and what became of all that were read.

    Conversation 2i is the better answer of pair i, conversation 2i + 1 the worse one.

    Raises:
        UserError: as `files_of` and `read_pairs`, or nothing is left to learn from.
    """
    counts = Counts("pairs", "of which an answer does not fit into block_size")

    def encoded() -> Iterator[list[Encoded]]:
        read = partial(read_pairs, merge_turns=merge_turns)
        for pair in read_each(files_of(sources, "data"), read, "turning pairs into tokens"):
            both = encode_pair(tokenizer, pair)
            fits = max(len(ids) for ids, _ in both) <= block_size + 1
            answers = zip((pair.chosen, pair.rejected), both, strict=True)
            yield [Encoded(answer, *found) for answer, found in answers] if fits else []

    train, val = two_sides(encoded(), counts, val_fraction, sources)
    log.info(f"{counts}; answers of {_mean(train, 0):.0f} tokens are preferred to answers of {_mean(train, 1):.0f}")
    return train, val, counts


def encode_pair(tokenizer: Tokenizer, pair: Pair) -> tuple[Learned, Learned]:
    """Return ids of both answers with their question, and which of them are learned.

    An answer that was cut off loses its end: else the model would learn not to stop where it never had.

    Raises:
        UserError: as `encode`.
    """
    chosen, rejected = (_encoded(tokenizer, side, stopped)
                        for side, stopped in zip((pair.chosen, pair.rejected), pair.stopped, strict=True))  # fmt: skip
    return chosen, rejected


def _encoded(tokenizer: Tokenizer, conversation: Conversation, stopped: bool) -> Learned:
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
