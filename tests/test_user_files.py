"""What is missing here and lies above: the path that would be right is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ("sft", "--base", "THING", "--data", "x.jsonl"),
        ("generate", "THING", "--prompt", "a"),
        ("train", "data_dir=THING", "out_dir=run"),
        ("train", "--config", "THING"),
        ("prepare", "THING", "--tokenizer", "tok", "--out", "out"),
        ("plot", "THING"),
        ("report", "THING"),
        ("tokenizer", "report", "THING"),
        ("eval", "x", "--tasks", "piqa", "--data", "THING"),
    ],
)
def test_a_path_that_is_right_from_a_folder_above_is_found_there(
    words: tuple[str, ...], tmp_path: Path, run_cli: Any
) -> None:
    (tmp_path / "things" / "mine").mkdir(parents=True)
    (tmp_path / "work" / "here").mkdir(parents=True)
    given = [word.replace("THING", "things/mine") for word in words]
    result = run_cli(*given, cwd=tmp_path / "work" / "here")
    assert result.returncode in (1, 2)
    assert "paths count from the folder that you are in: give ../../things/mine" in result.stderr, result.stderr
