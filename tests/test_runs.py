"""Runs: the newest, and what one is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mini_llm.errors import UserError
from mini_llm.runs import newest_run, run_name


def test_a_run_has_a_name_from_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "demo")
    names = {
        "run": "run",
        "../run": "run",
        "../mine": "mine",
        "../demo/run": "demo",
        "../demo/run/": "demo",
        ".": "demo",
    }
    assert {name: run_name(Path(name)) for name in names} == names
    monkeypatch.chdir("run")
    assert run_name(Path()) == "run"


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        newest_run("latest", tmp_path)


def test_what_was_tuned_after_the_demo_is_newer_than_the_demo(tmp_path: Path) -> None:
    for number, name in enumerate(("other", "demo/run", "demo/chat")):
        (tmp_path / name / "checkpoints" / "step-1").mkdir(parents=True)
        (tmp_path / name / "latest").symlink_to("checkpoints/step-1")
        os.utime(tmp_path / name / "latest", (number, number), follow_symlinks=False)
        assert newest_run("latest", tmp_path) == tmp_path / name
