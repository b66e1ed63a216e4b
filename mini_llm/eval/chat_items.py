"""What a chat model is asked: skills with new arguments and in new words, forms, its name, and open questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from mini_llm.tokenizer.chat import Message
from mini_llm.tune.skills import SKILLS, Exercise, Material, exercises
from mini_llm.tune.skills.addresses import Address, address_exercises
from mini_llm.tune.skills.draw import Draw, ask
from mini_llm.tune.skills.forms import FORMS, of_form
from mini_llm.tune.skills.identity import WHO
from mini_llm.tune.skills.talks import BEGINS, joined

SEED = 20_261_127  # of all exercises that are asked, in every evaluation
FORM_ITEMS = 20  # of each of the twelve forms, at most
LATE, LATE_ALONE = "after other turns", "the same, each alone"
TAUGHT, REWORDED = "addresses, taught phrasings", "addresses, new phrasings"

PROMPTS = (
    "Who are you?",
    "Hello!",
    "What can you do?",
    "Spell the word government.",
    'How many e are in "secretary"?',
    "Reverse the word treaty.",
    "Repeat after me: the rivers run to the sea",
    "Sort these numbers: 7 3 9 1",
    "What is 38 + 47?",
    "List three animals.",
    "Say something about a ship in capitals.",
    'Write JSON with the keys "name" and "age": Anna, 7',
    "Anna has a red boat. Ben has a blue one. What colour is the boat of Anna?",
    "Anna lives in Rome. Where does Ben live?",
    "What is the capital of France?",
    "What is a treaty?",
    "Write a short letter to a friend.",
    "Why is peace better than war?",
    "Tell me a story about a farmer.",
    "Thank you!",
)


@dataclass(frozen=True)
class Item:
    """A question of one group; its exercise's check judges the answer, where there is an exercise."""

    group: str  # "spelling, new arguments", "prompts"
    messages: list[Message]
    exercise: Exercise | None = None


def items(material: Material, n: int, addresses: Sequence[Address] = ()) -> list[Item]:
    """Return all questions, `n` of each skill with new arguments and `n` in new words, the same ones each time.

    Of `addresses` everything is learned by heart: `n` are asked as they were taught, and `n` in new words.
    """
    made: list[Item] = []
    for skill in SKILLS:
        if skill != "identity":  # which has no arguments
            made += _of(f"{skill}, new arguments", exercises(skill, n, seed=SEED, arguments="new", material=material))
            made += _of(f"{skill}, new phrasings", exercises(skill, n, seed=SEED, phrasings="new", material=material))
    made += _of("identity, new phrasings", _who(material))
    late = list(_late(material, n))
    made += _of(LATE, (joined(talk) for talk in late)) + _of(LATE_ALONE, (talk[-1] for talk in late))
    made += _of("forms of IFEval-lite", _forms(material, min(n, FORM_ITEMS)))
    if addresses:
        made += _of(TAUGHT, address_exercises(addresses, n, seed=SEED))
        made += _of(REWORDED, address_exercises(addresses, n, seed=SEED, phrasings="new"))
    return made + [Item("prompts", ask(prompt)) for prompt in PROMPTS]


def _of(group: str, found: Iterable[Exercise]) -> list[Item]:
    return [Item(group, exercise.messages, exercise) for exercise in found]


def _late(material: Material, n: int) -> Iterator[list[Exercise]]:
    """Yield some `n` questions with new arguments, each after one to three of other skills."""
    skills = [skill for skill in SKILLS if skill not in BEGINS]
    asked = [skill for skill in skills if skill != "identity"]
    for skill in asked:
        for i, last in enumerate(
            exercises(skill, max(1, n // len(asked)), seed=SEED, arguments="new", material=material)
        ):
            draw = Random(f"{SEED} {skill} {i}")
            others = draw.sample([other for other in skills if other != skill], draw.randint(1, 3))
            yield [*(next(exercises(other, 1, seed=SEED + i, material=material)) for other in others), last]


def _who(material: Material) -> Iterator[Exercise]:
    answer = WHO[1][0].format(name=material.name)
    return (Exercise(ask(question), answer, WHO[2], "identity") for question in WHO[0].new)


def _forms(material: Material, n: int) -> Iterator[Exercise]:
    """Yield new things in new words, as many of each form."""
    for form in FORMS:
        for i in range(n):
            yield of_form(Draw(Random(f"{SEED} {form} {i}"), material, "new", "new"), form)


def is_repetitive(answer: str) -> bool:
    """Return whether four words in a row stand there three times."""
    words = answer.split()
    return max(Counter(zip(*(words[i:] for i in range(4)), strict=False)).values(), default=0) >= 3


def distinct_2(answers: list[str]) -> float:
    """Return how many pairs of neighbouring words are different ones, as a share of all (arXiv 1510.03055)."""
    pairs = [pair for answer in answers for pair in zip(answer.split(), answer.split()[1:], strict=False)]
    return len(set(pairs)) / max(1, len(pairs))
