"""Sorting: numbers by size, letters and words by the alphabet."""

from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask

NUMBERS = Phrasings(
    train=(
        "Sort these numbers: {}",
        "Sort {}.",
        "Put these numbers in order: {}",
        "Order these from small to large: {}",
        "Sort the numbers {} from the smallest to the largest.",
    ),
    new=("Arrange these numbers from low to high: {}", "Please sort: {}"),
)
WORDS = Phrasings(
    train=("Sort these words: {}", "Put these words in alphabetical order: {}", "Sort by the alphabet: {}"),
    new=("Arrange these words from A to Z: {}", "Please put these words in the order of the alphabet: {}"),
)


def make(draw: Draw) -> Exercise:
    """Sort these numbers: 7 2 5 -> 2 5 7."""
    if draw.random.random() < 0.3:
        words = draw.words(3)
        return Exercise(ask(draw.phrase(WORDS).format(" ".join(words))), " ".join(sorted(words)), "words", "sorting")
    while True:
        most = draw.random.choice((10, 10, 100))
        numbers = draw.random.sample(range(most), draw.random.choice((3, 4, 5)))
        shown = " ".join(map(str, numbers))
        if draw.allows(shown):
            break
    answer = " ".join(map(str, sorted(numbers)))
    return Exercise(ask(draw.phrase(NUMBERS).format(shown)), answer, "words", "sorting")
