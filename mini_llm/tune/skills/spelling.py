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
        "Please spell {}.",
        "Spell {} with spaces between the letters.",
        "Now spell the word {} slowly.",
        "I do not know how {} is spelled. Do you?",
        'Tell me the letters of "{}", please.',
        "Of which letters is {} made?",
        'What letters are in "{}"?',
        "The word is {}. Spell it.",
        'Take the word "{}" apart.',
        "How does one spell {} in English?",
        "Would you write {} letter by letter?",
        'Which letters do I need for "{}"?',
    ),
    new=("Please spell the word {} for me.", 'Can you spell "{}"?', "Which letters make the word {}?"),
)


def make(draw: Draw) -> Exercise:
    """Spell cat. -> c a t."""
    word = draw.word()
    return Exercise(ask(draw.phrase(PHRASINGS).format(word)), " ".join(word), "letters", "spelling")
