"""Conversations of several exercises: what is asked late is answered as what is asked first.

Where each stands alone, only recall has earlier turns, and a model learns that whoever goes on talking asks for what
was told before: from the second question on it said "I do not know. You have not told me." to everything.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mini_llm.tokenizer.chat import Message
from mini_llm.tune.skills.draw import Exercise

BEGINS = ("recall", "unknown", "system")  # what is right depends on all that was said before
ENDS = ("system",)  # and what was said holds for all that follows


def talks(found: Iterable[Exercise], most: int, seed: int) -> Iterator[Exercise]:
    """Yield the same exercises in their order, joined to conversations of 1 to `most`, each length as likely.

    Each conversation is the exercise that it ends with, after the others and their answers.
    """
    generator = random.Random(f"{seed} talks")
    talk: list[Exercise] = []
    room = 1
    for exercise in found:
        if talk and (len(talk) >= room or exercise.skill in BEGINS or talk[0].skill in ENDS):
            yield joined(talk)
            talk = []
        if not talk:
            room = generator.randint(1, most)
        talk.append(exercise)
    if talk:
        yield joined(talk)


def joined(talk: list[Exercise]) -> Exercise:
    """Return exercises one after the other as the last one, of which every answer is learned."""
    messages, learned = list[Message](), list[int]()
    for exercise in talk[:-1]:
        messages += [*exercise.messages, Message("assistant", exercise.answer)]
        learned.append(len(messages) - 1)
    return replace(talk[-1], messages=[*messages, *talk[-1].messages], learned=tuple(learned))
