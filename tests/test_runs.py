"""Runs: the newest, and what one is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_llm.errors import UserError
from mini_llm.runs import newest_run, run_name


def test_a_run_has_a_name_from_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "demo")
    assert [run_name(Path(name)) for name in ("run", "run/../run", "../mine", "../demo/run")] == [
        "demo", "demo", "mine", "demo"
    ]  # fmt: skip
    monkeypatch.chdir("run")
    assert run_name(Path()) == "demo"


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        newest_run("latest", tmp_path)
