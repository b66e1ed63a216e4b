"""Questions come from skills and from every shape of verifiable data that people have; no held-out one is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mini_llm.errors import UserError
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.asked import Asked, read_asked
from mini_llm.tune.questions import fingerprint, read_questions
from mini_llm.tune.rl_config import RlConfig

ASKED = [Message("user", "How many?")]
TURNS = [{"role": "user", "content": "How many?"}]


@pytest.mark.parametrize(
    ("row", "reference", "check"),
    [
        ({"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}, "1,005", "number"),  # GSM8K
        ({"prompt": "How many?", "ground_truth": 7}, "7", "number"),
        ({"prompt": TURNS, "solution": "a few"}, "a few", "exact"),  # TRL
        ({"messages": TURNS, "answer": "c a t", "check": "letters", "skill": "spelling"}, "c a t", "letters"),
        ({"question": "How many?", "answer": "-3.5", "check": None}, "-3.5", "number"),
    ],
)
def test_every_shape_asks_the_same(
    row: dict[str, Any], reference: str, check: str, write_rows: Callable[..., Path]
) -> None:
    file = write_rows(row)
    assert list(read_asked(file)) == [Asked(ASKED, reference, check, f"{file}:1")]


def test_earlier_turns_and_system_messages_are_part_of_the_question(write_rows: Callable[..., Path]) -> None:
    said = [("system", "Be brief."), ("user", "I am Ann."), ("assistant", "Hello."), ("user", "Who am I?")]
    turns = [{"role": role, "content": content} for role, content in said]
    (found,) = read_asked(write_rows({"messages": turns, "answer": "Ann"}))
    assert [(m.role, m.content) for m in found.messages] == said
    assert found.answer == "Ann"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [*TURNS, {"role": "assistant", "content": "6"}], "answer": "5"}, "must end with the user's"),
        ({"messages": [{"role": "usr", "content": "a"}], "answer": "5"}, "unknown role"),
        ({"question": "a", "answer": True}, "the right answer is a bool"),
        ({"question": "a", "answer": math.inf}, "the right answer is no number: inf"),
        ({"question": "a", "answer": "#### "}, "an empty answer"),
        ({"question": 5, "answer": "a"}, "not a string"),
        ({"question": "a", "answer": "b", "check": 3}, "must be the name of a check, not 3"),
    ],
)
def test_faults_are_named_with_their_place(row: dict[str, Any], words: str, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"chat\.jsonl:1: .*" + words):
        list(read_asked(write_rows(row)))


def test_what_is_held_out_is_never_learned(
    base: Path, chat_tokenizer: Tokenizer, write_rows: Callable[..., Path]
) -> None:
    file = write_rows(*({"question": f"Say {i % 150}.", "answer": str(i)} for i in range(300)))
    values = {"base": str(base), "block_size": 127, "val_fraction": 0.3, "max_new_tokens": 20, "made": 300}
    config = RlConfig.model_validate({**values, "task": "spelling, copying", "data": [str(file)], "eval_questions": 50})
    learned, held_out = read_questions(config, chat_tokenizer)
    assert not {tuple(q.ids) for q in learned} & {tuple(q.ids) for q in held_out}
    of_skill = [q for q in held_out if q.place == "spelling"]
    assert len(of_skill) == 50
    known = {q.reference for q in learned if q.place == "spelling"}
    assert not known & {q.reference for q in of_skill}  # words, not only phrasings
    assert 0.15 < sum("jsonl" in q.place for q in held_out) / 300 < 0.45
    assert learned[0].ids == encode_chat(chat_tokenizer, [Message("user", chat_tokenizer.decode(learned[0].ids[2:-2]))])
    again = read_questions(config, chat_tokenizer)
    assert fingerprint(again[0]) == fingerprint(learned) != fingerprint(held_out)


def test_questions_that_leave_no_room_for_an_answer_are_counted(
    base: Path, chat_tokenizer: Tokenizer, write_rows: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(*({"question": f"Say {i}." + "x" * 60 * (i % 2), "answer": "y"} for i in range(60)))
    values = {"base": str(base), "data": [str(file)], "block_size": 63, "max_new_tokens": 20, "val_fraction": 0.3}
    read_questions(RlConfig.model_validate(values), chat_tokenizer)
    assert "30 left out" in capfd.readouterr().err
