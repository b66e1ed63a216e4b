"""A folder appears whole or not at all, and what a killed writer left is cleaned up without touching a live one."""

import os
from pathlib import Path

import pytest

from mini_llm.files import new_folder, write_text


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").mkdir()
        (folder / "a" / "b.txt").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a" / "b.txt").read_text() == "new"
    assert os.listdir(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, OSError])
def test_a_failed_block_changes_nothing(tmp_path: Path, problem: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")

    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "new.txt").write_text("new")
            raise problem

    with pytest.raises(problem):
        fail()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/old.txt"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    rename = Path.rename

    def rename_old_only(path: Path, target: Path) -> Path:
        if ".tmp-" in path.name and target.name == "out" and not path.name.endswith("-old"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_old_only)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out"):
        pass
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/old.txt"]


@pytest.mark.skipif(os.name == "nt", reason="needs file locks")
def test_leftovers_of_dead_writers_go_and_live_ones_stay(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp-dead").mkdir()
    (tmp_path / ".out.tmp-dead" / "half").write_text("x")
    (tmp_path / ".other.tmp-dead").mkdir()
    with new_folder(tmp_path / "out") as live:
        (live / "first").write_text("")
        with new_folder(tmp_path / "out"):
            assert live.is_dir()
            assert not (tmp_path / ".out.tmp-dead").exists()
    assert sorted(os.listdir(tmp_path)) == [".other.tmp-dead", "out"]
    assert os.listdir(tmp_path / "out") == ["first"]  # the last to end wins


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "two é"
    assert os.listdir(tmp_path) == ["a.txt"]
