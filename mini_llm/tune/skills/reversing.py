"""Reversing: a word backwards, spelled forwards first, so that each letter has something to be copied from."""

from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask

PHRASINGS = Phrasings(
    train=(
        "Spell {} backwards.",
        'Reverse the word "{}".',
        "Reverse {}.",
        'Write "{}" backwards.',
        "What is {} in reverse?",
    ),
    new=('Please write the letters of "{}" in reverse order.', "How is {} spelled backwards?"),
)


def make(draw: Draw) -> Exercise:
    """Reverse cat. -> c a t: t a c."""
    word = draw.word()
    answer = f"{' '.join(word)}: {' '.join(reversed(word))}"
    return Exercise(ask(draw.phrase(PHRASINGS).format(word)), answer, "letters", "reversing")
