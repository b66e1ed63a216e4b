"""Globs and folders end, whatever links and depth they have, and a glob finds what Python's own finds."""

import glob
import os
import subprocess
from pathlib import Path

import pytest

from mini_llm.data.reading import Reading
from mini_llm.data.walking import matching, walk


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.txt", "b.md", "x/a.txt", "x/y/a.txt", "x/y/z/c.txt", "w/y/d.txt", "w/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "pattern", ["**/*.txt", "x/**", "x/**/*", "*/y/*.txt", "**/y/**/*.txt", "**/**/a.*", "[wx]/**/[de].txt", "**/y/z/*"]
)
def test_a_glob_finds_what_pythons_own_finds(tree: Path, pattern: str) -> None:
    for source in (pattern, str(tree / pattern)):
        expected = {Path(found) for found in glob.glob(source, recursive=True) if os.path.isfile(found)}
        assert {*matching(source, Reading())} == expected


def test_links_in_circles_end(tree: Path) -> None:
    for name in ("one", "two", "three"):
        (tree / "x" / "y" / name).symlink_to(tree, target_is_directory=True)
    count = Reading()
    assert len(matching("**/*.txt", count)) == 6
    assert count.left_out["links in a circle"] == 3


def test_what_a_glob_names_and_is_no_file_is_counted(tree: Path) -> None:
    os.mkfifo(tree / "pipe.txt")
    (tree / "gone.txt").symlink_to("nowhere")
    count = Reading()
    assert matching("*.txt", count) == [Path("a.txt")]
    assert count.left_out == {"pipes and devices": 1, "broken links": 1}


def test_folders_may_be_deeper_than_pythons_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    Path("a.txt").write_text("a")
    os.chdir(tmp_path)
    try:
        assert len(walk(Path("d"), Reading())) == 1
        assert len(matching("**/a.txt", Reading())) == 1
    finally:  # pytest's own removal of old folders is recursive, and would fail three runs later
        subprocess.run(["rm", "-rf", "d"], check=True)
