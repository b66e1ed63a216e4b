"""Pairs made by program: checks choose, ties are left out and counted, a stopped run goes on to the same file."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mini_llm.errors import UsageError, UserError
from mini_llm.inference.generate import Generator
from mini_llm.tune import pairs as pairs_module
from mini_llm.tune.asked import Asked, asked_of
from mini_llm.tune.config import SftConfig
from mini_llm.tune.judge import Judged, best_and_worst, judged, repeats
from mini_llm.tune.pairs import Partial, Sampling, _finish, write_pairs
from mini_llm.tune.preference import read_pairs
from mini_llm.tune.sft import sft

Write = Callable[..., Path]
HERE = {"device": "cpu", "dtype": "float32", "backend": "auto"}


def answer(text: str, *, stopped: bool = True) -> Judged:
    return judged(text, stopped=stopped, check="exact", reference="a b c")


def test_right_goes_before_ended_before_not_repeating() -> None:
    right, wrong = answer("a b c"), answer("b")
    cut, cut_right = answer("b b", stopped=False), answer("a b c", stopped=False)
    again = answer("one two three four " * 4)
    order = [right, wrong, again, cut]
    assert sorted(order, key=lambda a: a.rank, reverse=True) == order
    assert cut_right.rank == cut.rank, "an answer that was cut off is not right"
    assert best_and_worst([cut, wrong, right, again]) == (right, cut)
    assert best_and_worst([wrong, again]) == (wrong, again)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([answer("a b c")] * 3, "all right"),
        ([answer("x"), answer("y")], "all wrong"),
        ([answer("x", stopped=False), answer("y " * 20, stopped=False)], "no answer that ends"),
        ([answer(" "), answer("")], "no answer that ends"),
    ],
)
def test_ties_are_left_out_with_a_reason(answers: list[Judged], reason: str) -> None:
    found = best_and_worst(answers)
    assert isinstance(found, str)
    assert found.startswith(reason)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b c d e f g", False), ("the cat sat down " * 3, True), ("abcd" * 3, True), ("banana", False), ("", False)],
)
def test_repetition(text: str, expected: bool) -> None:
    assert repeats(text) is expected


@pytest.fixture(scope="module")
def half_right(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives one of two answers, each now and then."""
    folder = tmp_path_factory.mktemp("half")
    rows = [{"question": f"Say {n % 40}?", "answer": ("a n t", "b e e")[n // 40]} for n in range(80)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"base": str(base), "data": [str(folder / "chat.jsonl")], "out_dir": str(folder / "run"), "device": "cpu"}
    small = {"block_size": 127, "batch_size": 4, "compile": False, "dtype": "float32", "learning_rate": 0.01}
    return sft(SftConfig.model_validate({**values, **small, "epochs": 30, "eval_interval": 1000, "eval_iters": 1}))


@pytest.fixture
def questions(write_rows: Write) -> Path:
    rows = [{"question": f"Say {n}?", "answer": "a n t", "check": "exact"} for n in range(100, 112)]
    return write_rows(*rows, name="questions.jsonl")


def test_the_command_makes_pairs_that_dpo_reads(half_right: Path, questions: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "made" / "pairs.jsonl"
    words = ["pairs", half_right, "--prompts", questions, "--out", out, "--max-new-tokens", 12, "--device", "cpu"]
    made = run_cli(*words, fresh=True)
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"{len(rows)} pairs from 12 questions" in made.stderr
    assert rows
    for row in rows:
        assert row["chosen"][0]["content"] == "a n t"
        assert row["chosen_score"] == 1
        assert row["rejected_score"] == 0
        assert 0 < row["share_right"] < 1
        assert row["made_by"]["samples"] == 8
        assert row["from"].startswith(str(questions))
        assert row["source"] == "synthetic"
    pairs = list(read_pairs(out))
    assert [p.chosen.messages[-1].content for p in pairs] == ["a n t"] * len(rows)
    assert [p.stopped[1] for p in pairs] == ["stopped" not in row["rejected"][0] for row in rows]
    again = tmp_path / "again.jsonl"
    write_pairs(half_right, again, asked_of("", [str(questions)], n=1, seed=0), Sampling(max_new_tokens=12), **HERE)
    assert _without_model(again) == _without_model(out)
    learned = run_cli("dpo", "--base", half_right, "--data", out, f"out_dir={tmp_path / 'dpo'}", "compile=false",
                      "val_fraction=0.4", "device=cpu")  # fmt: skip
    assert learned.returncode == 0, learned.stderr


def _without_model(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k != "made_by"} for line in path.read_text().splitlines()]


def test_a_stopped_run_goes_on_to_the_same_file(
    half_right: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, how = asked_of("", [str(questions)], n=1, seed=0), Sampling(samples=32, max_new_tokens=12, seed=4)
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    write_pairs(half_right, whole, asked, how, **HERE)
    answers, calls = pairs_module._answers, list[int]()

    def counted(generator: Any, some: Any, how: Sampling) -> Any:
        if len(calls) == 3:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(len(some))
        return answers(generator, some, how)

    monkeypatch.setattr(pairs_module, "_answers", counted)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(half_right, broken, asked, how, **HERE)
    assert not broken.exists()
    part = tmp_path / ".broken.jsonl.part"
    part.write_text(part.read_text() + '{"prompt": [{"ro')  # a kill in the middle of a line
    write_pairs(half_right, broken, asked, how, **HERE)
    assert broken.read_bytes() == whole.read_bytes()
    assert sum(calls) == len(asked), "no question is asked twice"
    assert not part.exists()


def test_another_seed_begins_anew(half_right: Path, questions: Path, tmp_path: Path) -> None:
    asked = asked_of("", [str(questions)], n=1, seed=0)
    out = tmp_path / "pairs.jsonl"
    (tmp_path / ".pairs.jsonl.part").write_text('{"other": 1}\n{"prompt": 1}\n')
    write_pairs(half_right, out, asked, Sampling(max_new_tokens=12, seed=1), **HERE)
    assert all("chosen" in json.loads(line) for line in out.read_text().splitlines())


def test_what_was_kept_on_the_way_may_be_damaged_or_in_use(half_right: Path, questions: Path, tmp_path: Path) -> None:
    asked, how = asked_of("", [str(questions)], n=1, seed=0), Sampling(samples=4, max_new_tokens=12)
    whole, again = tmp_path / "whole.jsonl", tmp_path / "again.jsonl"
    write_pairs(half_right, whole, asked, how, **HERE)
    part = tmp_path / ".again.jsonl.part"
    of = pairs_module.described(Generator(half_right, device="cpu", dtype="float32"), asked, how, "cpu float32 auto")
    part.write_text(f"{pairs_module.Partial(again, of).head}\n{{damaged\n[1]\n")
    with part.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is making"):
            write_pairs(half_right, again, asked, how, **HERE)
    write_pairs(half_right, again, asked, how, **HERE)
    assert again.read_bytes() == whole.read_bytes()


def test_skills_and_gsm8k_are_asked(write_rows: Write) -> None:
    found = asked_of("spelling=3,copying=2", [], n=1, seed=0)
    assert sorted(one.source for one in found) == ["copying"] * 2 + ["spelling"] * 3
    assert found == asked_of("spelling=3,copying=2", [], n=1, seed=0)
    (sum_,) = asked_of("", [str(write_rows({"question": "1+1?", "answer": "It is\n#### 2"}))], n=1, seed=0)
    assert (sum_.answer, sum_.check) == ("2", "number")
    (plain,) = asked_of("", [str(write_rows({"question": "1+1?", "answer": 2}))], n=1, seed=0)
    assert (plain.answer, plain.check) == ("2", "number"), "judged as rl judges it"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a"}, "no answer to check by"),
        ({"answer": "a"}, "no question"),
        ({"question": "a", "answer": "b", "check": "exakt"}, "did you mean 'exact'"),
        ({"question": "a", "answer": "b", "check": 3}, "check must be the name of a check, not 3"),
        ({"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}, "the assistant speaks first"),
        ({"question": "a", "answer": None}, "no answer to check by"),
    ],
)
def test_faulty_questions_are_named(row: dict[str, Any], words: str, write_rows: Write) -> None:
    with pytest.raises(UserError) as problem:
        asked_of("", [str(write_rows(row))], n=1, seed=0)
    assert words in str(problem.value)
    assert "chat.jsonl:1" in str(problem.value)


def test_what_is_wrong_is_said(base: Path, half_right: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="what is to be asked"):
        asked_of("", [], n=1, seed=0)
    with pytest.raises(UsageError, match="what is to be asked"):
        asked_of("spelling", [str(questions)], n=1, seed=0)
    with pytest.raises(UsageError, match="did you mean 'spelling'"):
        asked_of("speling", [], n=1, seed=0)
    asked = asked_of("", [str(questions)], n=1, seed=0)
    mine = tmp_path / "mine.txt"
    for notes in ("my notes", '{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}\n'):
        mine.write_text(notes)
        with pytest.raises(UserError, match="not replaced"):
            write_pairs(half_right, mine, asked, Sampling(), **HERE)
        assert mine.read_text() == notes
    never = [Asked(one.messages, "something else", "exact", "x") for one in asked]
    with pytest.raises(UserError, match=r"no pair in 12 questions, 12 left out") as problem:
        write_pairs(half_right, tmp_path / "none.jsonl", never, Sampling(2, 0.01, 12), **HERE)
    assert problem.value.hint


def test_pairs_of_two_wrong_answers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = [{"share_right": share} for share in (0, 0, 0.5)]
    _finish(tmp_path / "pairs.jsonl", Partial(tmp_path / "pairs.jsonl", {}), [*lines, {"left_out": "all wrong"}])
    assert "3 pairs (2 of two wrong answers" in capsys.readouterr().err
