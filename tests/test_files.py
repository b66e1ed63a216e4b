"""A folder appears whole or not at all, and what a killed writer left is cleaned up without touching a live one."""

import os
import re
import signal
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mini_llm import files
from mini_llm.errors import Interrupted, UserError
from mini_llm.files import (
    MADE_HERE,
    Kind,
    check_page,
    check_replaceable_lines,
    new_file,
    new_folder,
    put_back,
    write_text,
)
from mini_llm.temporary import temporary_folder
from mini_llm.threads import Worker, WorkerDied
from mini_llm.user_files import kind_of, open_file, reason

ANY = Kind("a folder of texts", re.compile(r"\w+\.txt|sub/(\w+\.txt)?"))


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
        with new_folder(tmp_path / "out", ANY) as folder:
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

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", rename_old_only)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", ANY):
        pass
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/old.txt"]


@pytest.mark.skipif(os.name == "nt", reason="needs file locks")
def test_leftovers_of_dead_writers_go_and_live_ones_stay(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp-dead0123").mkdir()
    (tmp_path / ".out.tmp-dead0123" / "half").write_text("x")
    (tmp_path / ".other.tmp-dead0123").mkdir()
    with new_folder(tmp_path / "out", ANY) as live:
        (live / "first").write_text("")
        with new_folder(tmp_path / "out", ANY):
            assert live.is_dir()
            assert not (tmp_path / ".out.tmp-dead0123").exists()
    assert sorted(os.listdir(tmp_path)) == [".other.tmp-dead0123", "out"]
    assert os.listdir(tmp_path / "out") == ["first"]  # the last to end wins


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("make", [new_file, new_folder, lambda _: temporary_folder()])
def test_a_signal_leaves_nothing_half_done(
    make: Any, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Interrupted) as stop, make(tmp_path / "a.txt") as temporary:  # noqa: PT012
        assert temporary.exists()
        signal.raise_signal(number)
    assert stop.value.exit_code == 128 + number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "two é"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_whole_folder_of_its_kind_is_replaced(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for text in ("one", "two"):
        with new_folder(tmp_path / "out", ANY) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / f"{text}.txt").write_text(text)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["out", "out/sub", "out/sub/two.txt"]


@pytest.mark.parametrize("entry", ["corpus.md", "sub/deep/a.txt", "sub/notes.md", "link.txt"])
def test_nothing_is_replaced_that_others_made(entry: str, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    with new_folder(out, ANY) as folder:
        (folder / "a.txt").write_text("ours")
    (out / entry).parent.mkdir(parents=True, exist_ok=True)
    if entry == "link.txt":
        (out / entry).symlink_to(tmp_path)
    else:
        (out / entry).write_text("theirs")
    with pytest.raises(UserError, match="not replaced"), new_folder(out, ANY):
        pytest.fail("the refusal comes first")
    os.rename(out, other)
    with pytest.raises(UserError, match=r"the new one is .*out\.1"), new_folder(out, ANY) as folder:  # noqa: PT012
        (folder / "b.txt").write_text("hours of work")
        os.rename(other, out)  # put there meanwhile
    assert (out / "a.txt").read_text() == "ours"
    assert (tmp_path / "out.1" / "b.txt").read_text() == "hours of work"
    assert os.path.lexists(out / entry)


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp-01234567-old").mkdir()
    (tmp_path / ".out.tmp-01234567-old" / "a.txt").write_text("old")
    (tmp_path / ".out.tmp-01234567").mkdir()
    put_back(tmp_path / "out")  # what every reader and writer does first
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    with pytest.raises(ValueError, match="fails"), new_folder(tmp_path / "out", ANY):
        raise ValueError("fails")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_modes_follow_the_umask_whatever_library_wrote(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "out") as folder:
            for name, mode in (("a", 0o600), ("b", 0o644), ("c", 0o666)):
                (folder / name).touch()
                (folder / name).chmod(mode)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()} == {0o666 & ~mask}


def test_a_file_of_others_and_what_is_no_file_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "later").write_text('{"messages": []}\n{"mark": 1}\n')
    (tmp_path / "list").write_text('["mark"]\n')
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("mine", "pipe", "", "later", "list", "link", "/dev/null"):
        with pytest.raises(UserError, match="not replaced"):
            check_replaceable_lines(tmp_path / name, lambda first: "mark" in first, "marked file")
    (tmp_path / "ours").write_text('{"mark": 1}\n{"messages": []}\n')
    (tmp_path / "empty").touch()
    for name in ("ours", "empty", "new"):
        check_replaceable_lines(tmp_path / name, lambda first: "mark" in first, "marked file")


def test_of_a_link_the_file_is_replaced(tmp_path: Path) -> None:
    """Renamed over it, a file would take the place of /dev/stdout."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("old")
    link, other = tmp_path / "link", tmp_path / "latest"
    link.symlink_to("far/file")
    other.symlink_to("far")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "new"
    write_text(other, "a pointer")  # a link to a folder is no way to a file
    assert not other.is_symlink()
    assert {path.name for path in tmp_path.rglob("*")} == {"far", "file", "link", "latest"}


def test_bad_names_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    for name, words in {
        "x" * 5000: "the name is too long",
        "nul\0": "holds a NUL character",
        "loop": "its links lead in a circle",
        "pipe": "is a pipe, not a file",
        ".": "is a folder, not a file",
        "broken": "is a link that leads to nothing",
        "nothing": "is missing",
    }.items():
        with pytest.raises(UserError, match=words) as problem:
            open_file(f"{tmp_path}/{name}")
        assert len(problem.value.message) < 600
    for name in ("x" * 5000, "nul\0", "loop", "pipe/below", "broken/.."):
        with pytest.raises((UserError, OSError)), new_folder(Path(f"{tmp_path}/{name}")):
            pytest.fail("cannot be")
    assert kind_of(tmp_path / "broken") == "nothing"
    assert reason(OSError(27, "File too large")) == "the file-size limit of this process is reached (ulimit -f)"


def test_long_names_that_the_disk_takes_are_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / ("x" * 255)):
        pass
    assert os.listdir(tmp_path) == ["x" * 255]


def test_temporary_folders_go_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("mini-llm-01234567", "mini-llm-mine", "other"):
        (tmp_path / name).mkdir()
    with temporary_folder() as folder, temporary_folder():
        assert folder.is_dir()
    assert sorted(os.listdir(tmp_path)) == ["mini-llm-mine", "other"]


def test_a_thread_that_dies_before_it_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Worker(lambda: 7).result() == 7
    with pytest.raises(KeyError):
        Worker(lambda: {}["x"]).result()

    def die(*_: object) -> None:
        raise SystemExit  # as for lack of memory, but in silence

    monkeypatch.setattr(Worker, "_run", die)
    with pytest.raises(WorkerDied):
        Worker(lambda: 7).result()


def test_a_page_is_replaced_only_by_the_next_of_its_kind(tmp_path: Path) -> None:
    ours, theirs, empty, pipe = (tmp_path / name for name in ("ours.md", "theirs.md", "empty.md", "pipe.md"))
    ours.write_text(f"# A page\n\n<!-- {MADE_HERE} -->\n")
    theirs.write_text("# My notes of a year\n")
    empty.touch()
    os.mkfifo(pipe)
    for path in (ours, empty, tmp_path / "none.md"):
        check_page(path)
    for path in (theirs, pipe, tmp_path):
        with pytest.raises(UserError, match=r"not replaced\nchoose another place"):
            check_page(path)
