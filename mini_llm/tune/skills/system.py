"""System messages: what was said once at the beginning holds for every answer."""

from collections.abc import Callable

from mini_llm.tokenizer.chat import Message
from mini_llm.tune.skills import identity
from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings
from mini_llm.tune.skills.forms import plain

# For each: what the system message says, what it makes of an answer, and the check.
STYLES: dict[str, tuple[Phrasings, Callable[[str, str], str]]] = {
    "capitals": (
        Phrasings(
            ("Answer in capitals.", "Use capital letters only.", "Write everything in capitals."),
            ("All your answers must be in capital letters.",),
        ),
        lambda answer, word: answer.upper(),
    ),
    "small": (
        Phrasings(
            ("Answer in small letters.", "Use small letters only.", "Write everything in small letters."),
            ("Never use a capital letter.",),
        ),
        lambda answer, word: answer.lower(),
    ),
    "quoted": (
        Phrasings(
            ("Put every answer in quotation marks.", "Answer in quotation marks."),
            ("All your answers must stand in quotation marks.",),
        ),
        lambda answer, word: f'"{answer}"',
    ),
    "begins": (
        Phrasings(
            ('Begin every answer with "{word}".', 'The first word of your answers is "{word}".'),
            ('Always begin with "{word}".',),
        ),
        lambda answer, word: f"{word}! {answer}",
    ),
    "ends": (
        Phrasings(
            ('End every answer with "{word}".', 'The last word of your answers is "{word}".'),
            ('Always end with "{word}".',),
        ),
        lambda answer, word: f"{answer} {word}",
    ),
}
NAMED = Phrasings(("You are {}.", "Your name is {}.", "You are called {}."), ("From now on you bear the name {}.",))


def make(draw: Draw) -> Exercise:
    """[Answer in capitals.] What is a dog? -> A DOG IS AN ANIMAL."""
    style = draw.random.choice([*STYLES, "name"])
    if style == "name":
        name = draw.made_up().capitalize()
        system = draw.phrase(NAMED).format(name)
        question, answer, check = identity.who(draw).messages[-1].content, f"I am {name}.", "names"
    else:
        phrasings, spoken = STYLES[style]
        word = draw.word().capitalize()
        system, check = draw.phrase(phrasings).format(word=word), style
        question, answer = plain(draw)
        question, answer = f"{question}{draw.random.choice(('.', '', '?'))}", spoken(answer, word)
    return Exercise([Message("system", system), Message("user", question)], answer, check, "system")
