"""Forms: an answer as it was asked for. Twelve of them, each of which a program can check.

After IFEval (arXiv 2311.07911), at the size of a small model: what is said is simple, how it is said is the exercise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask
from mini_llm.tune.skills.things import KINDS, NAMES, with_article

NUMBERS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ABOUT = Phrasings(
    train=("Say something about {a}", "Tell me something about {a}", "Describe {a}", "What is {a}"),
    new=("Write a sentence about {a}", "What do you know about {a}"),
)
SAID = ("I like {a}.", "This is {a}.", "{a} is {kind}.", "{a} is good to have.", "I have seen {a} and liked it.")
WITHOUT_E = ("It is good.", "I know it, and I find it good.", "It is not bad at all.", "I can say only good of it.")
SHORT = {
    1: "{thing}.",
    2: "Good {thing}.",
    3: "See the {thing}.",
    4: "I like this {thing}.",
    5: "I have seen the {thing}.",
}


class Topic(NamedTuple):
    """A thing to speak about."""

    kind: str
    thing: str

    @property
    def a(self) -> str:
        """The thing with its article."""
        return f"the colour {self.thing}" if self.kind == "colour" else with_article(self.thing)

    def say(self, sentence: str) -> str:
        """Return a sentence with the thing in it."""
        filled = sentence.format(a=self.a, kind=with_article(self.kind), thing=self.thing)
        return filled[0].upper() + filled[1:]


def make(draw: Draw) -> Exercise:
    """Say something about a dog in capitals. -> A DOG IS AN ANIMAL."""
    return of_form(draw, draw.random.choice(list(FORMS)))


def of_form(draw: Draw, form: str) -> Exercise:
    """Return an exercise of one form; its check bears the same name."""
    question, answer = FORMS[form](draw, _topic(draw))
    return Exercise(ask(question), answer, form, "forms")


def _topic(draw: Draw) -> Topic:
    kind = draw.random.choice(list(KINDS))
    return Topic(kind, draw.pick(KINDS[kind]))


def _about(draw: Draw, topic: Topic) -> str:
    return draw.phrase(ABOUT).format(a=topic.a)


def _said(draw: Draw, topic: Topic) -> str:
    return topic.say(draw.random.choice(SAID))


def plain(draw: Draw) -> tuple[str, str]:
    """Return a question on a thing that asks for no form, and an answer."""
    topic = _topic(draw)
    return _about(draw, topic), _said(draw, topic)


def _one_word(draw: Draw, topic: Topic) -> tuple[str, str]:
    how = Phrasings(
        ("Name {a} in one word.", "Name {a}. Answer in one word.", "Say one {kind}, one word only."),
        ("Give me {a}, with one single word.", "Which {kind} comes to your mind? Use one word."),
    )
    return draw.phrase(how).format(a=with_article(topic.kind), kind=topic.kind), topic.thing.capitalize()


def _n_words(draw: Draw, topic: Topic) -> tuple[str, str]:
    n = draw.random.choice(list(SHORT))
    how = Phrasings(
        ("{about} in exactly {n} words.", "{about}. Use exactly {n} words.", "Exactly {n} words: {about}."),
        ("{about}, and write exactly {n} words.",),
    )
    return draw.phrase(how).format(about=_about(draw, topic), n=NUMBERS[n]), topic.say(SHORT[n])


def _at_most(draw: Draw, topic: Topic) -> tuple[str, str]:
    n = draw.random.choice((3, 4, 5, 6, 8, 10))
    how = Phrasings(
        ("{about} in at most {n} words.", "{about}. Use no more than {n} words.", "In at most {n} words: {about}."),
        ("{about} with {n} words or fewer.",),
    )
    answer = topic.say(SHORT[min(n, draw.random.choice((2, 3, 4, 5)))])
    return draw.phrase(how).format(about=_about(draw, topic), n=NUMBERS[n]), answer


def _items(draw: Draw, topic: Topic) -> tuple[str, str]:
    n = draw.random.randint(2, 5)
    plural = topic.kind.replace("thing", "things") if " " in topic.kind else f"{topic.kind}s"
    how = Phrasings(
        ("List {n} {kinds}.", "Give me a list of {n} {kinds}.", "Name {n} {kinds}.", "Write a list of {n} {kinds}."),
        ("I need a list with {n} {kinds}.", "Please list {n} {kinds}."),
    )
    chosen = draw.random.sample(KINDS[topic.kind], n)
    return draw.phrase(how).format(n=NUMBERS[n], kinds=plural), "\n".join(f"- {item}" for item in chosen)


def _capitals(draw: Draw, topic: Topic) -> tuple[str, str]:
    how = Phrasings(
        ("{about} in capitals.", "{about}. Use capital letters only.", "In capitals: {about}."),
        ("{about}, all in capital letters.",),
    )
    return draw.phrase(how).format(about=_about(draw, topic)), _said(draw, topic).upper()


def _small(draw: Draw, topic: Topic) -> tuple[str, str]:
    how = Phrasings(
        ("{about} in small letters.", "{about}. Use small letters only.", "In small letters: {about}."),
        ("{about}, without any capital letter.", "{about}, all in small letters."),
    )
    return draw.phrase(how).format(about=_about(draw, topic)), _said(draw, topic).lower()


def _begins(draw: Draw, topic: Topic) -> tuple[str, str]:
    word = draw.word().capitalize()
    how = Phrasings(
        ('{about}. Begin with the word "{word}".', '{about} and begin with "{word}".', 'Begin with "{word}": {about}.'),
        ('{about}. Your first word must be "{word}".',),
    )
    return draw.phrase(how).format(about=_about(draw, topic), word=word), f"{word}! {_said(draw, topic)}"


def _ends(draw: Draw, topic: Topic) -> tuple[str, str]:
    word = draw.word().capitalize()
    how = Phrasings(
        ('{about}. End with the word "{word}".', '{about} and end with "{word}".', 'End with "{word}": {about}.'),
        ('{about}. Your last word must be "{word}".',),
    )
    return draw.phrase(how).format(about=_about(draw, topic), word=word), f"{_said(draw, topic)} {word}"


def _without_e(draw: Draw, topic: Topic) -> tuple[str, str]:
    how = Phrasings(
        ("{about} without the letter e.", "{about}. Do not use the letter e.", "Without the letter e: {about}."),
        ("{about}, and avoid the letter e.",),
    )
    return draw.phrase(how).format(about=_about(draw, topic)), draw.random.choice(WITHOUT_E)


def _quoted(draw: Draw, topic: Topic) -> tuple[str, str]:
    how = Phrasings(
        ("{about} in quotation marks.", "{about}. Put your answer in quotation marks.", "In quotation marks: {about}."),
        ("{about}, between two quotation marks.",),
    )
    return draw.phrase(how).format(about=_about(draw, topic)), f'"{_said(draw, topic)}"'


def _json(draw: Draw, topic: Topic) -> tuple[str, str]:
    name, age = draw.pick(NAMES), draw.random.randrange(5, 95)
    how = Phrasings(
        (
            'Write JSON with the keys "name" and "age": {name}, {age}',
            'Give me JSON with "name" and "age" for {name}, who is {age}.',
            'As JSON with the keys "name" and "age": {name} is {age} years old.',
        ),
        ('Turn this into JSON with the keys "name" and "age": {name} is {age}.',),
    )
    return draw.phrase(how).format(name=name, age=age), json.dumps({"name": name, "age": age})


def _json_keys(draw: Draw, topic: Topic) -> tuple[str, str]:
    key = draw.random.choice(("answer", topic.kind.split()[0], draw.word()))
    how = Phrasings(
        ('Name {a}. Answer in JSON with the key "{key}".', 'Name {a} as JSON with the key "{key}".'),
        ('Which {kind} do you know? Write JSON whose key is "{key}".',),
    )
    question = draw.phrase(how).format(a=with_article(topic.kind), kind=topic.kind, key=key)
    return question, json.dumps({key: topic.thing})


FORMS: dict[str, Callable[[Draw, Topic], tuple[str, str]]] = {
    "one_word": _one_word,
    "n_words": _n_words,
    "at_most": _at_most,
    "items": _items,
    "capitals": _capitals,
    "small": _small,
    "begins": _begins,
    "ends": _ends,
    "without_e": _without_e,
    "quoted": _quoted,
    "json": _json,
    "json_keys": _json_keys,
}
