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
    ),
    new=("Please say exactly this: {}", 'Echo the following words: "{}"'),
)


def make(draw: Draw) -> Exercise:
    """Repeat after me: cold rivers -> cold rivers."""
    sentence = draw.sentence(most_words=16) if draw.random.random() < 0.3 else None
    text = sentence or " ".join(draw.words(draw.random.randint(1, 10)))
    return Exercise(ask(draw.phrase(PHRASINGS).format(text)), text, "exact", "copying")
