"""Skills made by program: exercises without end, each with a right answer and the check that knows others.

Exercise i is a pure function of (seed, skill, i, sides, material). All are labelled synthetic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from mini_llm.errors import UsageError, did_you_mean
from mini_llm.tune.skills import (
    addition,
    copying,
    counting,
    forms,
    identity,
    reading,
    recall,
    reversing,
    sorting,
    spelling,
    system,
)
from mini_llm.tune.skills.draw import Draw, Exercise, Material, Side
from mini_llm.tune.skills.pieces import DRILLS, drill

__all__ = ["DRILLS", "SKILLS", "Exercise", "Material", "exercises"]

SKILLS: dict[str, Callable[[Draw], Exercise]] = {
    "spelling": spelling.make,
    "counting": counting.make,
    "reversing": reversing.make,
    "sorting": sorting.make,
    "addition": addition.make,
    "copying": copying.make,
    "identity": identity.make,
    "recall": recall.make,
    "reading": reading.make,
    "unknown": reading.make_unknown,
    "forms": forms.make,
    "system": system.make,
}


def exercises(
    skill: str,
    n: int,
    *,
    seed: int,
    arguments: Side = "train",
    phrasings: Side = "train",
    material: Material | None = None,
) -> Iterator[Exercise]:
    """Yield n exercises of a skill, with arguments and phrasings to learn from or new ones; or of a drill.

    Raises:
        UsageError: no skill has that name, or a drill has no pieces.
    """
    material = material or Material()
    if skill in DRILLS:  # which nobody is asked: they are the way, and the skills are the end
        yield from drill(skill, n, seed=seed, pieces=material.pieces, held_out=material.by_side["new"])
        return
    if skill not in SKILLS:
        raise UsageError(f"no skill '{skill}'{did_you_mean(skill, SKILLS)}", f"known: {', '.join(SKILLS)}")
    for i in range(n):
        generator = random.Random(f"{seed} {skill} {i} {arguments} {phrasings}")
        yield SKILLS[skill](Draw(generator, material, arguments, phrasings))
