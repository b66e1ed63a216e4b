"""Recall over turns: what was told some turns ago, asked for again."""

from mini_llm.tokenizer.chat import Message
from mini_llm.tune.skills import addition, spelling
from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings
from mini_llm.tune.skills.things import CITIES, KINDS, NAMES

# For each kind of fact: how it is told, what is said to that, how it is asked for, the answer, and the check.
FACTS = {
    "name": (
        Phrasings(train=("My name is {}.", "I am {}.", "Hi, I am {}!"), new=("People call me {}.",)),
        "Nice to meet you, {}!",
        Phrasings(
            train=("What is my name?", "Who am I?", "Do you know my name?"),
            new=("Can you tell me my name?", "Which name did I tell you?"),
        ),
        "Your name is {}.",
        "names",
    ),
    "city": (
        Phrasings(train=("I live in {}.", "My home is in {}."), new=("I have a house in {}.",)),
        "{} is a good place to live.",
        Phrasings(train=("Where do I live?", "In which city do I live?"), new=("Can you tell me where I live?",)),
        "You live in {}.",
        "names",
    ),
    "animal": (
        Phrasings(train=("I have a {}.", "My pet is a {}."), new=("At home I keep a {}.",)),
        "I am sure that it is a fine {}.",
        Phrasings(train=("Which animal do I have?", "What pet do I have?"), new=("Which animal did I tell you of?",)),
        "You have a {}.",
        "ends",
    ),
    "colour": (
        Phrasings(train=("My favourite colour is {}.", "I like {} best."), new=("No colour is better than {}.",)),
        "I see, {}.",
        Phrasings(
            train=("Which colour do I like?", "What is my favourite colour?"), new=("Can you name the colour I like?",)
        ),
        "You like {}.",
        "ends",
    ),
    "word": (
        Phrasings(train=("Remember the word {}.", "The secret word is {}."), new=("Keep this word in mind: {}",)),
        "I will remember it.",
        Phrasings(
            train=("What is the word?", "Which word did I tell you?"), new=("Which word should you keep in mind?",)
        ),
        "The word is {}.",
        "ends",
    ),
    "number": (
        Phrasings(train=("Remember the number {}.", "My number is {}."), new=("Keep this number in mind: {}",)),
        "I will remember it.",
        Phrasings(
            train=("What is the number?", "Which number did I tell you?"),
            new=("Which number should you keep in mind?",),
        ),
        "The number is {}.",
        "number",
    ),
}


def make(draw: Draw) -> Exercise:
    """My name is Anna. ... What is my name? -> Your name is Anna."""
    kind = draw.random.choice(list(FACTS))
    told, heard, asked, answer, check = FACTS[kind]
    value = _value(draw, kind)
    turns = [Message("user", draw.phrase(told).format(value)), Message("assistant", heard.format(value))]
    for _ in range(draw.random.randrange(3)):
        between = draw.random.choice((addition, spelling)).make(draw)
        turns += [*between.messages, Message("assistant", between.answer)]
    return Exercise([*turns, Message("user", draw.phrase(asked))], answer.format(value), check, "recall")


def untold(draw: Draw) -> Exercise:
    """My name is Anna. ... Where do I live? -> I do not know. You have not told me."""
    kind, other = draw.random.sample(list(FACTS), 2)
    told, heard = FACTS[kind][:2]
    value = _value(draw, kind)
    turns = [Message("user", draw.phrase(told).format(value)), Message("assistant", heard.format(value))]
    question = Message("user", draw.phrase(FACTS[other][2]))
    return Exercise([*turns, question], "I do not know. You have not told me.", "words", "unknown")


def _value(draw: Draw, kind: str) -> str:
    if kind in ("name", "city"):
        made_up = draw.made_up().capitalize()
        return made_up if draw.random.random() < 0.3 else draw.pick(NAMES if kind == "name" else CITIES)
    if kind == "word":
        return draw.word()
    if kind == "number":
        return str(draw.random.randrange(10, 1000))
    return draw.pick(KINDS[kind])
