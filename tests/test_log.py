"""Messages go to stderr as they are; stdout holds results only; bars are drawn on terminals alone."""

import itertools

import pytest

from mini_llm import log


@pytest.mark.parametrize("say", [log.info, log.note, log.warn, log.error])
def test_messages_go_to_stderr_alone(say, capsys) -> None:
    say("read 3 files")
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.rstrip("\n").endswith("read 3 files")


def test_a_warning_and_an_error_say_so(capsys) -> None:
    log.warn("odd")
    log.error("broken", "mend it so")
    assert capsys.readouterr().err == "warning: odd\nerror: broken\nmend it so\n"


@pytest.mark.parametrize(
    "text", ["[bold]x[/bold]", "[/]", "a[0] = {1: 'x'}", "C:\\new [red]", ":smile:", "日本語 🔥", "w" * 500]
)
def test_text_is_shown_as_it_is(text, capsys) -> None:
    log.info(text)
    log.error(text, text)
    assert capsys.readouterr().err == f"{text}\nerror: {text}\n{text}\n"


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch) -> None:
    seconds = iter([0.0, 5.0, 20.0, 20.1])
    monkeypatch.setattr(log.time, "monotonic", lambda: next(seconds))
    with log.byte_progress("reading", 100_000_000) as update:
        for done in (10_000_000, 40_000_000, 41_000_000):
            update(done)
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "reading: 40 of 100 MB, 2.0 MB/s, 0:00:30 left\n")


def test_a_bar_is_told_ten_times_a_second_and_the_end(monkeypatch) -> None:
    seconds = itertools.count(100.0, 1 / 64)
    monkeypatch.setattr(log.time, "monotonic", lambda: next(seconds))
    shown: list[int] = []
    update = log._now_and_then(shown.append, 20)
    for done in range(1, 21):
        update(done)
    assert shown == [1, 8, 15, 20]


@pytest.mark.parametrize("total", [0, 10])
def test_progress_survives_odd_totals(total, capsys, monkeypatch) -> None:
    monkeypatch.setattr(log, "LINE_SECONDS", 0)
    with log.byte_progress("reading", total) as update:
        for done in (0, 5, 20):
            update(done)
    assert capsys.readouterr().out == ""


def test_an_error_inside_a_bar_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), log.byte_progress("reading", 0):
        raise ZeroDivisionError
