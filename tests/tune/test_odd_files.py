"""Files that other trainers crash on, or learn nothing from without a word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mini_llm.train.run.metrics import read_metrics

WORDS = ["device=cpu", "dtype=float32", "compile=false", "batch_size=2", "block_size=63", "epochs=null", "max_iters=2"]
LONG = "cat " * 200


def talk(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


def test_conversations_longer_than_a_row_are_counted_and_the_rest_is_learned(  # type: ignore[no-untyped-def]
    base: Path, write_rows, tmp_path: Path, run_cli
) -> None:
    short = [talk(f"Say {i}.", "cat cat cat") for i in range(60)]
    data = write_rows(*short, talk("Say cat.", "cat", "Say more.", LONG), talk("Say it all.", LONG))
    result = run_cli("sft", "--base", base, "--data", data, f"out_dir={tmp_path / 'run'}", *WORDS)
    assert result.returncode == 0, result.stderr
    assert "62 conversations" in result.stderr
    assert "1 shortened to whole answers" in result.stderr
    assert "1 left out, whose first answer does not fit into a row" in result.stderr
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_nothing_to_learn_is_said(base: Path, write_rows, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    for name, rows, message in (
        ("all-user", [talk(f"Say {i}.") for i in range(9)], "chat.jsonl:1"),
        ("empty", [], "nothing to learn"),
        ("too long", [talk(f"Say {i}.", LONG) for i in range(9)], "9 left out"),
        ("one", [talk("Say cat.", "cat")], "no conversation is held out"),
    ):
        result = run_cli("sft", "--base", base, "--data", write_rows(*rows), f"out_dir={tmp_path / name}", *WORDS)
        assert result.returncode in (1, 2), (name, result.stderr)
        assert message in result.stderr, name
        assert "Traceback" not in result.stderr
        assert not (tmp_path / name / "checkpoints").exists()
