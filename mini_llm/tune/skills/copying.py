"""Copying: say exactly this; what a model that finds its own words must learn first."""

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
    sentence = draw.sentence(most_words=12) if draw.random.random() < 0.4 else None
    text = sentence or " ".join(draw.words(draw.random.randint(1, 5)))
    return Exercise(ask(draw.phrase(PHRASINGS).format(text)), text, "exact", "copying")
