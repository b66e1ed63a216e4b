"""Exercises are the same for the same seed, are answered rightly, and never leak what is held out."""

from __future__ import annotations

import itertools

import pytest

from mini_llm.errors import UsageError
from mini_llm.tune.checks import CHECKS
from mini_llm.tune.skills import SKILLS, Exercise, Material, exercises
from mini_llm.tune.skills.draw import is_held_out

SPEECH = """Fellow citizens of the Senate, the treaty with Spain was signed in 1819 by both parties. The revenue of the
year was 24 million dollars and the debt was reduced. Commerce is growing in every port of the Union, and farms too.
The army in the West consists of nine regiments under General Gaines. No nation asked for more than justice from us."""


@pytest.fixture(scope="module")
def corpus() -> Material:
    made_up = " ".join(f"{a}{b}{c}" for a in "bdfgklmnpr" for b in "aeiou" for c in ("lter", "nding", "rmer", "stion"))
    return Material.of([f"{SPEECH} {made_up}"] * 3, "Bo")


def drawn(skill: str, n: int = 40, **options: object) -> list[Exercise]:
    return list(exercises(skill, n, seed=1, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_right_and_the_seed_decides(skill: str, corpus: Material) -> None:
    for material in (None, corpus):
        found = drawn(skill, material=material)
        assert found == drawn(skill, material=material)
        assert found[:7] == drawn(skill, 7, material=material)
        assert found != list(exercises(skill, 40, seed=2, material=material))
        assert len({tuple(e.messages) for e in found}) > 10
        for exercise in found:
            assert exercise.skill == skill
            assert exercise.messages[-1].role == "user"
            assert CHECKS[exercise.check](exercise.answer, exercise.answer) == 1.0, exercise
            assert CHECKS[exercise.check]("", exercise.answer) == 0.0, exercise


@pytest.mark.parametrize("skill", SKILLS)
def test_what_is_held_out_is_never_learned(skill: str, corpus: Material) -> None:
    questions = {
        side: {e.messages[-1].content for e in drawn(skill, 300, arguments=side, material=corpus)}
        for side in ("train", "new")
    }
    assert not questions["train"] & questions["new"]
    questions = {
        side: {e.messages[-1].content for e in drawn(skill, 300, phrasings=side, material=corpus)}
        for side in ("train", "new")
    }
    assert not questions["train"] & questions["new"]


def test_a_common_word_is_always_learned_and_a_rare_one_may_be_held_out() -> None:
    words = ["".join(letters) for letters in itertools.product("abcdefghijklmnopqrst", repeat=3)]
    sides = Material(words=tuple(words)).by_side
    assert set(sides["train"]) >= set(words[:6000])
    assert 100 < len(sides["new"]) < 300
    assert all(map(is_held_out, sides["new"]))
    assert not set(sides["train"]) & set(sides["new"])


def test_worked_sums_are_right() -> None:
    for exercise in drawn("addition", 300):
        steps, _, result = exercise.answer.rpartition(":")
        for step in filter(None, steps.split(",")):
            left, _, right = step.partition("=")
            assert sum(int(part) for part in left.split("+")) == int(right)
        numbers = [int(w.strip(".?")) for w in exercise.messages[0].content.split() if w.strip(".?").isdigit()]
        assert sum(numbers) == int(result)


def test_an_unknown_skill_is_named() -> None:
    with pytest.raises(UsageError, match="no skill 'speling', did you mean 'spelling'"):
        next(exercises("speling", 1, seed=0))
