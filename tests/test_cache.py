"""Where things are kept for the next time: in the user's home, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_llm.cache import Known, cache_folder


def test_a_relative_cache_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The XDG specification says so: else each folder that one works in would get one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == tmp_path / ".cache" / "mini-llm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" / "mini-llm"


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker run --user 1234`: no entry in /etc/passwd, and HOME is not set."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    known = Known("tokenizers")
    known.add("a")
    assert "a" not in known
