"""Exercises are the same for the same seed, are answered rightly, and never leak what is held out."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from mini_llm.demo_chat import FEW, WHOLE
from mini_llm.errors import UsageError
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.checks import CHECKS
from mini_llm.tune.formats import read_conversations
from mini_llm.tune.skills import DRILLS, SKILLS, Exercise, Material, exercises
from mini_llm.tune.skills.draw import is_held_out
from mini_llm.tune.skills.identity import ABLE
from mini_llm.tune.skills.pieces import pieces_of

LETTERS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou", "al", "en", "or", "un", "is")
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


def asked(skill: str, material: Material, **options: object) -> set[tuple[str, ...]]:
    return {tuple(m.content for m in e.messages) for e in drawn(skill, 300, material=material, **options)}


@pytest.mark.parametrize("skill", [name for name in SKILLS if name != "identity"])  # which has no arguments
def test_arguments_held_out_are_never_learned(skill: str, corpus: Material) -> None:
    train, new = asked(skill, corpus, arguments="train"), asked(skill, corpus, arguments="new")
    assert len(train & new) <= 0.1 * len(new)  # a question that names no argument may be asked on both sides


@pytest.mark.parametrize("skill", SKILLS)
def test_phrasings_held_out_are_never_learned(skill: str, corpus: Material) -> None:
    assert not asked(skill, corpus, phrasings="train") & asked(skill, corpus, phrasings="new")


def test_a_held_out_word_is_in_no_question_to_learn_from() -> None:
    words = ("".join(letters) for letters in itertools.product("bcdfghjk", "lmnpqrst", LETTERS, "abcdefghijklm"))
    rare = Material(words=tuple(words))
    new = {e.answer.replace(" ", "") for e in drawn("spelling", 200, arguments="new", material=rare)}
    learned = {e.answer.replace(" ", "") for e in drawn("spelling", 5000, material=rare)}
    assert len(new) > 50
    assert not new & learned


def test_half_of_the_questions_on_people_speak_of_nobody_in_the_text() -> None:
    for exercise in drawn("unknown", 200):
        assert exercise.answer.startswith("I do not know.")
    for exercise in drawn("reading", 200):
        assert exercise.answer.rstrip(".").lower() in exercise.messages[0].content.lower()


def test_the_name_is_the_material_s(corpus: Material) -> None:
    said = " ".join(e.answer for e in drawn("identity", 60, material=corpus))
    assert "Bo" in said
    assert "Mini-LLM" not in said


def test_the_command_writes_what_sft_reads(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    text, out = tmp_path / "speech.txt", tmp_path / "skills.jsonl"
    text.write_text(SPEECH * 3, encoding="utf-8")
    words = ["skills", "--out", out, "--skills", "spelling=6,identity", "--n", "4", "--corpus", text, "--name", "Bo"]
    words += ["--turns", "1"]
    for _ in range(2):  # over a file of its own it may write
        result = run_cli(*words)
        assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["skill"] for row in rows].count("spelling") == 6
    assert {row["source"] for row in rows} == {"synthetic"}
    conversations = list(read_conversations(out))
    assert [c.messages[-1].content for c in conversations] == [row["answer"] for row in rows]
    assert all(c.learned == [*[False] * (len(c.messages) - 1), True] for c in conversations)
    assert any("Bo" in row["answer"] for row in rows)


def test_exercises_join_to_conversations_in_which_every_answer_is_learned(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    alone, out = tmp_path / "alone.jsonl", tmp_path / "talks.jsonl"
    for path, turns in ((alone, "1"), (out, "4")):
        result = run_cli("skills", "--out", path, "--n", "20", "--turns", turns)
        assert result.returncode == 0, result.stderr
    together = list(read_conversations(out))
    taught = [[m.content for m, learned in zip(c.messages, c.learned, strict=True) if learned] for c in [*together]]
    assert [answer for answers in taught for answer in answers] == [
        c.messages[-1].content for c in read_conversations(alone)
    ]
    assert {len(answers) for answers in taught} == {1, 2, 3, 4}
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for row, conversation in zip(rows, together, strict=True):
        assert [m.role for m in conversation.messages[1:]].count("system") == 0
        if row["skill"] in ("recall", "unknown", "system"):  # what is right there depends on all that was said
            assert sum(conversation.learned) == 1


def test_bad_words_of_the_command(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    foreign = tmp_path / "mine.jsonl"
    mine = '{"messages": [{"role": "user", "content": "my diary"}], "answer": "x"}\n'
    foreign.write_text(mine, encoding="utf-8")
    for words, code, message in (
        (["--out", tmp_path / "a", "--skills", "speling"], 2, "did you mean 'spelling'"),
        (["--out", tmp_path / "a", "--skills", "spelling=many"], 2, "is no number"),
        (["--out", tmp_path / "a", "--skills", "spelling=" + "9" * 20], 2, "more than 10,000,000 exercises"),
        (["--out", tmp_path / "a", "--n", "9" * 20], 2, "--n"),
        (["--out", tmp_path / "a", "--corpus", tmp_path / "none.txt"], 1, "none.txt"),
        (["--out", foreign], 1, "not replaced"),
        (["--out", tmp_path], 1, "not a file"),
    ):
        result = run_cli("skills", *words)
        assert result.returncode == code, result.stderr
        assert message in result.stderr
    assert foreign.read_text(encoding="utf-8") == mine


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


def test_drills_go_through_a_whole_vocabulary_and_leave_out_held_out_words(chat_tokenizer: Tokenizer) -> None:
    pieces = pieces_of(chat_tokenizer, ["catgnu"])
    assert set(pieces) >= {"a", " Spell", " d"}
    assert "<|end|>" not in "".join(pieces)
    assert {pieces.count(piece) for piece in pieces} == {1, 3}  # more often what new words are made of
    made = drawn("letters", 200, material=Material(pieces=pieces))
    asked_for = (
        e.messages[0].content.rstrip(".").split(": " if ":" in e.messages[0].content else "? ")[1] for e in made
    )
    taught = {word.strip('"') for words in asked_for for word in words.split(", ")}
    assert taught >= {piece.strip() for piece in pieces if re.fullmatch(r" ?[a-z]{2,14}", piece)}
    for exercise in made:
        for part in exercise.answer.removeprefix("Here: ").split(", "):
            name, *letters = part.split(" ")
            assert name.strip('"') == "".join(letters)
    assert all(e.answer in e.messages[0].content for e in drawn("echo", 50, material=Material(pieces=pieces)))
    for exercise in drawn("joined", 200, material=Material(pieces=pieces)):
        asked, words = exercise.messages[0].content, exercise.answer.split(", ")
        assert all(not letters[1::2].strip() and letters[::2] in asked for letters in words)
        assert not any(is_held_out(letters[::2]) for letters in words)
    words = [f"x{i}" for i in range(6000)] + ["".join(w) for w in itertools.product("bcdfgh", "aeiou", "lmnpr")]
    rare = Material(words=tuple(words), pieces=tuple(f" {word}" for word in words[6000:]))
    said = {
        word
        for e in drawn("letters", 200, material=rare)
        for word in re.findall("[a-z]{3}", e.answer.removeprefix("Here: "))
    }
    assert len(rare.by_side["new"]) > 5
    assert said == set(words[6000:]) - set(rare.by_side["new"])


def test_a_piece_stands_in_a_drill_as_it_stands_in_a_word(chat_tokenizer: Tokenizer) -> None:
    pieces = [piece for piece in pieces_of(chat_tokenizer) if re.fullmatch(r" ?[a-z]{2,14}", piece)]
    shown = " ".join(e.messages[0].content for e in drawn("letters", 100, material=Material(pieces=tuple(pieces))))
    read = {chat_tokenizer.decode([5, i])[len(chat_tokenizer.decode([5])) :] for i in chat_tokenizer.encode(shown)}
    assert len(set(pieces) & read) > 0.9 * len(set(pieces))


def test_what_it_says_that_it_can_do_is_what_the_demo_practises() -> None:
    named = {"spell": "spelling", "count": "counting", "repeat": "copying", "keep in mind": "recall"}
    kept_back = {"add": "addition", "sort": "sorting", "reverse": "reversing", "text": "reading"}
    (answer,) = ABLE[1]
    assert all(word in answer for word in named)
    assert not any(word in answer for word in kept_back)
    for counts in (WHOLE.counts, FEW.counts):
        assert min(counts[skill] for skill in named.values()) > max(counts[skill] for skill in kept_back.values())


def test_the_command_drills_the_vocabulary_of_a_model(base: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "drills.jsonl"
    result = run_cli("skills", "--out", out, "--n", "3", "--tokenizer", base, "--turns", "1", fresh=True)
    assert result.returncode == 0, result.stderr
    made = [json.loads(line)["skill"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert {skill: made.count(skill) for skill in made} == dict.fromkeys([*SKILLS, *DRILLS], 3)
    for words, code, message in (
        (["--skills", "letters"], 2, "--tokenizer MODEL"),
        (["--skills", "leters"], 2, "did you mean 'letters'"),
        (["--tokenizer", tmp_path / "none"], 1, "none"),
    ):
        result = run_cli("skills", "--out", tmp_path / "other.jsonl", *words)
        assert result.returncode == code, result.stderr
        assert message in result.stderr
