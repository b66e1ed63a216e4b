"""A conversation as ids, and which of them are learned: built together, so that no search in a text can miss.

Learned are the answers and the marker that ends each, so that the model learns to stop; never the markers of roles,
never what others said.
"""

from __future__ import annotations

from itertools import pairwise

from mini_llm.tokenizer.answers import encode_answers
from mini_llm.tokenizer.chat import Message
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.formats import Conversation


def encode(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Return the ids of a conversation, the same as `encode_chat`'s, and for each whether it is learned.

    Raises:
        UserError: as `encode_answers`.
    """
    ids, written = encode_answers(tokenizer, conversation.messages)
    turns = zip(conversation.messages, conversation.learned, strict=True)
    is_learned = [flag for message, flag in turns if message.role == "assistant"]
    answer, learned = -1, []
    for before, now in pairwise([False, *written]):
        answer += now and not before  # between two answers stands what another says
        learned.append(now and is_learned[answer])
    return ids, learned


def shortened(tokenizer: Tokenizer, conversation: Conversation, most: int) -> tuple[list[int], list[bool], bool] | None:
    """Return ids, what is learned and whether turns were left out, so that at most `most` ids stay.

    Turns go from the end until the last answer is whole: an answer that is cut off would teach not to stop. None where
    not even the first answer fits, or nothing that is learned is left.
    """
    ids, learned = encode(tokenizer, conversation)
    messages, flags, was_cut = list(conversation.messages), list(conversation.learned), False
    while messages and (len(ids) > most or messages[-1].role != "assistant"):
        messages.pop()
        flags.pop()
        ids, learned = encode(tokenizer, Conversation(messages, flags, conversation.place))
        was_cut = True
    return (ids, learned, was_cut) if any(learned) else None


def learned_text(messages: list[Message], flags: list[bool]) -> int:
    """Return the bytes of what is learned: the unit of bits per byte."""
    return sum(len(m.content.encode("utf-8", "replace")) for m, flag in zip(messages, flags, strict=True) if flag)
