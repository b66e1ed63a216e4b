"""What is right is right and what is wrong is wrong, check by check: rewards and tables stand on them."""

from __future__ import annotations

import pytest

from mini_llm.errors import UserError
from mini_llm.tune.checks import CHECKS, check_named

LIST = "- ant\n- bee"
CASES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {  # reference, right answers, wrong ones
    "exact": ("a b", ("a b", " a b\n"), ("a  b", "A b", "")),
    "words": ("Say it.", ("say it", "SAY, it!"), ("it say", "say it now", "")),
    "letters": ("c a t: t a c", ("t a c", "cat: T-A-C", "x: tac"), ("c a t", "t a c: c a t", "")),
    "number": ("7 + 5 = 12: 1,012", ("1012", "it is 1,012."), ("1012 or 13", "none", "")),
    "names": ("I am Mini-LLM of 1861.", ("Mini-LLM, 1861", "1861 Mini-LLM"), ("Mini-LLM", "I am", "mini-llm 1861", "")),
    "begins": ("Yes, it is.", ("yes", "Yes! It is"), ("no, yes", "")),
    "ends": ("Good night. Over", ("Hello. Over", "well over."), ("Over", "over there", "")),
    "one_word": ("cat", ("dog", "Dog."), ("a dog", "", "...")),
    "n_words": ("a b c", ("x y z", "X, y. Z"), ("x y", "w x y z", "")),
    "at_most": ("a b", ("x", "x y"), ("x y z", "", "!")),
    "capitals": ("X", ("HELLO YOU", "A1!"), ("Hello", "12", "")),
    "small": ("x", ("hello you",), ("Hello", "12", "")),
    "capital_words": ("GO ON", ("GO ON", "GO, ON!"), ("go on", "GO", "")),
    "without_e": ("x", ("a dog ran",), ("a tree", "E", "")),
    "quoted": ('"x"', ('"a b"',), ("a b", '"', '""', '"a', "")),
    "items": (LIST, ("1. x\n2. y", "* x\n* y\n"), ("- x", "- x\n- X", "- x\n- y\n- z", "x\ny", "Here:\n- x\n- y", "")),
    "json": ('{"a": 1, "b": "x"}', ('{"b": "x", "a": 1}',), ('{"a": 1}', "a: 1", "[1]", "", "[" * 99999)),
    "json_keys": ('{"a": 1}', ('{"a": "y"}',), ('{"b": 1}', '{"a": 1, "b": 2}', "{a: 1}", "")),
}


def test_every_check_is_held_to_cases() -> None:
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize("name", CASES)
def test_right_and_wrong(name: str) -> None:
    reference, right, wrong = CASES[name]
    assert CHECKS[name](reference, reference) == 1.0
    assert [answer for answer in right if CHECKS[name](answer, reference) != 1.0] == []
    assert [answer for answer in wrong if CHECKS[name](answer, reference) != 0.0] == []


def test_an_unknown_check_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"pairs.jsonl:3: no check 'exakt', did you mean 'exact'"):
        check_named("exakt", "pairs.jsonl:3")
