"""Addition: digit by digit from the right with what is carried, as on paper; small sums at once.

Written in the plain order a sum's first digit depends on all others, and small models never learn it whole; with the
steps written out they do from a few thousand (arXiv 2307.03381).
"""

from mini_llm.tune.skills.draw import Draw, Exercise, Phrasings, ask

PHRASINGS = Phrasings(
    train=(
        "What is {a} + {b}?",
        "{a} + {b} =",
        "Add {a} and {b}.",
        "How much is {a} plus {b}?",
        "Calculate {a} + {b}.",
    ),
    new=("Please work out {a} plus {b}.", "What is the sum of {a} and {b}?"),
)


def make(draw: Draw) -> Exercise:
    """Add 47 and 38. -> 7 + 8 = 15, 4 + 3 + 1 = 8: 85."""
    while True:
        most = draw.random.choice((10, 100, 100, 1000))
        a, b = draw.random.randrange(most), draw.random.randrange(most)
        if draw.allows(f"{a}+{b}"):
            break
    return Exercise(ask(draw.phrase(PHRASINGS).format(a=a, b=b)), worked(a, b), "number", "addition")


def worked(a: int, b: int) -> str:
    """Return a sum with its steps, one a digit, then a colon and the result; of two digits it has no steps."""
    if max(a, b) < 10:
        return str(a + b)
    steps, carried, left, right = [], 0, a, b
    while left or right:
        parts = [left % 10, right % 10, *([1] if carried else [])]
        steps.append(f"{' + '.join(map(str, parts))} = {sum(parts)}")
        left, right, carried = left // 10, right // 10, sum(parts) // 10
    return f"{', '.join(steps)}: {a + b}"
