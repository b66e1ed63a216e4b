"""The page's table of published runs is what the command prints, and one of nine is off by more than a fifth."""

import importlib

import pytest


def test_the_page_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch, repository) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    published = importlib.import_module("published")
    rows = published.compare()
    assert published.as_table(rows) in (repository / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert [row["run"] for row in rows if abs(row["error"]) > 0.2] == ["MPT 30B, rows of 8,192, 8 GPUs"]
