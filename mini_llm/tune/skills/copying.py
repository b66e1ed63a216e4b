"""Copying: say exactly this; what a model that finds its own words must learn first.

Long copies teach it soonest: after their first word, each token is found by looking where the one before it stood.
"""

from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask

PHRASINGS = Phrasings(
    train=(
        "Repeat after me: {}",
        "Say: {}",
        "Copy this: {}",
        "Repeat: {}",
        'Say "{}".',
        'Repeat the words "{}".',
        "Write this again: {}",
        "Say it after me: {}",
        "Answer with these words only: {}",
        "Now write: {}",
        'Please repeat "{}".',
        "Write the same once more: {}",
        'Give me these words back: "{}"',
        'What I say is "{}". Say it too.',
        "Type this line exactly as it is: {}",
        "Here is a line for you to repeat: {}",
        "Please write these words: {}",
        'Copy the text "{}" for me.',
        'Do not change a word of it: "{}"',
        "say {}",
    ),
    new=("Please say exactly this: {}", 'Echo the following words: "{}"'),
)


def make(draw: Draw) -> Exercise:
    """Repeat after me: cold rivers -> cold rivers."""
    sentence = draw.sentence(most_words=16) if draw.random.random() < 0.3 else None
    text = sentence or " ".join(draw.words(draw.random.randint(1, 10)))
    return Exercise(ask(draw.phrase(PHRASINGS).format(text)), text, "exact", "copying")
