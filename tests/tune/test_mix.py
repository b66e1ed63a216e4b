"""A mixture holds what its file asks for, whatever the order in which conversations come."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mini_llm.config import load_config
from mini_llm.tune.mix import Mixture

ROOT = Path(__file__).resolve().parents[2]


def talk(question: str, answer: str, source: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "source": source, "license": "CC0"}


ROWS = [
    *(talk(f"How many {i}?", "one two three four five six seven", "help") for i in range(20)),
    talk("Who?", "As an AI language model I cannot say that now.", "help"),
    *(talk(f"Name {i}", f"n{i}", "trivia") for i in range(30)),
    *(talk(f"Talk {i}", "long " * 40, "booking") for i in range(5)),
    talk("Name 1", "n1", "trivia"),
]
FILE = """
groups:
  - {of: help, times: 3, without: [AI language model]}
  - {of: trivia, keep: 10, say: Answer briefly.}
"""


def mixed(folder: Path, run_cli: Any, rows: list[dict[str, Any]], mixture: str = FILE, *, fresh: bool = False) -> Any:
    data, file = folder / "chat.jsonl", folder / "mixture.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file.write_text(mixture, encoding="utf-8")
    return run_cli("mix", data, "--mixture", file, "--out", folder / "mixed.jsonl", fresh=fresh)


def test_so_many_of_each_so_often_and_short_answers_are_asked_for(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(ROWS)
    random.Random(0).shuffle(shuffled)
    written = []
    for rows in (ROWS, shuffled):
        result = mixed(tmp_path, run_cli, rows, fresh=rows is shuffled)
        assert result.returncode == 0, result.stderr
        written.append((tmp_path / "mixed.jsonl").read_bytes())
    assert written[0] == written[1]
    found = [json.loads(line) for line in written[0].decode().splitlines()]
    assert [row["source"] for row in found].count("help") == 60
    assert {row["source"] for row in found[:20]} == {"help", "trivia"}  # they are shuffled
    assert sum(one == two for one, two in itertools.pairwise(found)) < 10  # and no three of a kind stand together
    assert {row["license"] for row in found} == {"CC0"}
    trivia = [row["messages"][0]["content"] for row in found if row["source"] == "trivia"]
    assert len(trivia) == len(set(trivia)) == 10
    assert all(question.endswith(" Answer briefly.") for question in trivia)
    assert not any("briefly" in row["messages"][0]["content"] for row in found if row["source"] == "help")
    assert "help: 60 of 21" in result.stderr


def test_what_is_wrong_is_said(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    for mixture, code, message in (
        ("groups: [{of: hlep}]", 1, "no conversation is of the source 'hlep'"),
        ("seed: 1", 1, "nothing is left"),
        ("groups: [{of: help, keep: 0}]", 2, "keep"),
        ("gruops: []", 2, "did you mean 'groups'"),
    ):
        result = mixed(tmp_path, run_cli, ROWS, mixture)
        assert result.returncode == code, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "mixed.jsonl").exists()


def test_where_there_is_no_mixture_the_shipped_one_is_named(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    (data := tmp_path / "chat.jsonl").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    result = run_cli("mix", data, "--mixture", tmp_path / "mixture.yaml", "--out", tmp_path / "mixed.jsonl")
    assert result.returncode == 1
    assert "--mixture configs/chat-mix.yaml" in result.stderr


def test_conversations_of_a_user_are_not_replaced(tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    """They begin as every file of conversations does; what a mixture is says `made_by`."""
    mine = tmp_path / "mixed.jsonl"
    mine.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    result = mixed(tmp_path, run_cli, ROWS)
    assert result.returncode == 1
    assert "not replaced" in result.stderr
    assert mine.read_text(encoding="utf-8") == json.dumps(ROWS[0]) + "\n"
    mine.unlink()
    assert mixed(tmp_path, run_cli, ROWS).returncode == 0
    before = mine.read_bytes()
    again = run_cli("mix", mine, "--mixture", tmp_path / "mixture.yaml", "--out", mine)
    assert again.returncode == 2
    assert "one of the sources" in again.stderr
    assert mine.read_bytes() == before


def test_the_shipped_mixture_is_valid() -> None:
    mixture = load_config(Mixture, ROOT / "configs/chat-mix.yaml")
    assert len({group.of for group in mixture.groups}) == len(mixture.groups) == 11


@pytest.mark.parametrize("unlearned", [0, 1])
def test_what_is_not_to_be_learned_stays_so(unlearned: int, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    row = talk("Hi", "Hello", "help")
    row["messages"][1]["weight"] = 1 - unlearned
    result = mixed(tmp_path, run_cli, [row], "rest: true")
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "mixed.jsonl").read_text(encoding="utf-8").splitlines()
    assert ("weight" in json.loads(line)["messages"][1]) == bool(unlearned)
