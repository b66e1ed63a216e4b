"""Reading: the answer stands in a text, or does not, and then it is "I do not know".

The texts are made-up facts on made-up people, and sentences of your own corpus, in which a year, a number or the rest
of a sentence is looked for. A model that answers from a text given needs no knowledge, and can be held to it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mini_llm.tune.skills import recall
from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask
from mini_llm.tune.skills.things import CITIES, KINDS, NAMES, with_article

UNKNOWN = "I do not know. The text does not say."
ROUND = Phrasings(
    train=(
        "{text}\n\n{question}",
        "{text} {question}",
        "Read this: {text}\n\n{question}",
        "Text: {text}\nQuestion: {question}",
        "{question}\n\n{text}",
    ),
    new=("Here is a text. {text}\n\nAnswer from it: {question}", "{question} Look into this text: {text}"),
)
YEAR, NUMBER = re.compile(r"\b(1[789]\d\d|20[012]\d)\b"), re.compile(r"\$?\b\d[\d,]*\b")


class Fact(NamedTuple):
    """A kind of fact: how it is written, how it is asked for, and what may be its value."""

    written: str
    asked: Phrasings
    values: tuple[str, ...]


FACTS = (
    Fact("{who} lives in {what}.", Phrasings(("Where does {who} live?",), ("What is the home of {who}?",)), (*CITIES,)),
    Fact(
        "{who} has {what}.",
        Phrasings(("What does {who} have?",), ("What is it that {who} has?",)),
        tuple(with_article(thing) for thing in (*KINDS["animal"], *KINDS["tool"])),
    ),
    Fact(
        "{who} likes {what}.",
        Phrasings(("What does {who} like?", "Which colour does {who} like?"), ("Which colour is liked by {who}?",)),
        tuple(KINDS["colour"]),
    ),
    Fact(
        "{who} is {what} years old.",
        Phrasings(("How old is {who}?",), ("What is the age of {who}?",)),
        tuple(map(str, range(5, 95))),
    ),
    Fact(
        "{who} works as {what}.",
        Phrasings(("What is the job of {who}?", "What does {who} work as?"), ("Which job does {who} have?",)),
        tuple(with_article(thing) for thing in KINDS["job"]),
    ),
)
IN_SENTENCE = {
    "year": Phrasings(("Which year does the text name?", "What year is in the text?"), ("Find the year.",)),
    "number": Phrasings(("Which number does the text name?", "What number is in the text?"), ("Find the number.",)),
    "rest": Phrasings(
        ('What comes after "{begin}" in the text?', 'How does the text go on after "{begin}"?'),
        ('Which words follow "{begin}"?',),
    ),
}


def make(draw: Draw) -> Exercise:
    """Anna lives in Rome. Where does Anna live? -> Rome."""
    return _of_sentence(draw) or _of_people(draw, known=True)


def make_unknown(draw: Draw) -> Exercise:
    """Anna lives in Rome. Where does Ben live? -> I do not know. The text does not say."""
    return recall.untold(draw) if draw.random.random() < 0.3 else _of_people(draw, known=False)


def _of_people(draw: Draw, known: bool) -> Exercise:
    people = draw.random.sample([draw.pick(NAMES) for _ in range(9)] + [draw.made_up().capitalize()], 4)
    people = list(dict.fromkeys(people))
    facts = [(who, fact) for who in people for fact in FACTS]
    written = draw.random.sample(facts, min(len(facts), draw.random.randint(2, 4)))
    values = {place: draw.pick(place[1].values) for place in written}
    text = " ".join(fact.written.format(who=who, what=values[who, fact]) for who, fact in written)
    who, fact = draw.random.choice(written if known else [place for place in facts if place not in written])
    answer = f"{values[who, fact][0].upper()}{values[who, fact][1:]}." if known else UNKNOWN
    return _exercise(draw, text, draw.phrase(fact.asked).format(who=who), answer, known)


def _of_sentence(draw: Draw) -> Exercise | None:
    """Return a question on a sentence of the corpus; None for half of the draws, or where there is no corpus."""
    if draw.random.random() < 0.5 or (sentence := draw.sentence()) is None:
        return None
    words = sentence.rstrip(".!?").split()
    start = draw.random.randrange(max(1, len(words) - 6))
    begin, rest = " ".join(words[start : start + 3]), " ".join(words[start + 3 : start + 7])
    for kind, pattern in (("year", YEAR), ("number", NUMBER)):
        found = set(pattern.findall(sentence))
        if len(found) == 1:
            return _exercise(draw, sentence, draw.phrase(IN_SENTENCE[kind]), f"{found.pop()}.", True)
    if not rest or sentence.count(begin) != 1:
        return None
    return _exercise(draw, sentence, draw.phrase(IN_SENTENCE["rest"]).format(begin=begin), f"{rest}.", True)


def _exercise(draw: Draw, text: str, question: str, answer: str, known: bool) -> Exercise:
    asked = draw.phrase(ROUND).format(text=text, question=question)
    return Exercise(ask(asked), answer, "words", "reading" if known else "unknown")
