"""Counting letters: spelled out, with a count that runs along, because no model sees letters within tokens."""

from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask

PHRASINGS = Phrasings(
    train=(
        "How many {letter} are in {word}?",
        'How often does the letter {letter} occur in "{word}"?',
        'Count the letter {letter} in "{word}".',
        "How many times is {letter} in the word {word}?",
        "Count the {letter}s in {word}.",
    ),
    new=("How many times do you see the letter {letter} in {word}?", 'What is the number of {letter} in "{word}"?'),
)


def make(draw: Draw) -> Exercise:
    """How many e are in tree? -> t r e 1 e 2 = 2."""
    word = draw.word()
    letter = draw.random.choice(word if draw.random.random() < 0.8 else "aeinorst")
    count, steps = 0, []
    for one in word:
        steps.append(one)
        if one == letter:
            count += 1
            steps.append(str(count))
    question = draw.phrase(PHRASINGS).format(letter=letter, word=word)
    return Exercise(ask(question), f"{' '.join(steps)} = {count}", "number", "counting")
