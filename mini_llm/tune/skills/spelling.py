"""Spelling: the letters of a word, which its tokens hide.

A word is one token or a few, and no token shows its letters: the model must learn by heart what each is made of.
In quotation marks a word begins without a space, and is cut into other, smaller tokens.
"""

from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask

PHRASINGS = Phrasings(
    train=(
        "Spell {}.",
        "Spell the word {}.",
        'Spell "{}".',
        'How do you spell "{}"?',
        "How is {} spelled?",
        "What are the letters of {}?",
        'Write the letters of "{}", one by one.',
        "spell {}",
    ),
    new=("Please spell the word {} for me.", 'Can you spell "{}"?', "Which letters make the word {}?"),
)


def make(draw: Draw) -> Exercise:
    """Spell cat. -> c a t."""
    word = draw.word()
    return Exercise(ask(draw.phrase(PHRASINGS).format(word)), " ".join(word), "letters", "spelling")
