"""What a terminal would obey never reaches it, in pieces or whole; a pipe gets every byte."""

import io
import os
import pty
import subprocess
import sys

import pytest

from mini_llm.terminal import safe_console, visible

HOSTILE = ["\x1b]0;PWN\x07", "\x1b[2J", "\x9b31m", "\u202egnp", "a\rb", "\x00\x08\x7f", "\x1b]8;;http://x\x1b\\link"]


@pytest.mark.parametrize("text", HOSTILE)
def test_codes_become_characters_that_can_be_seen(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown


def test_a_code_in_pieces_is_as_harmless_as_a_whole_one() -> None:
    for text in HOSTILE:
        assert "".join(visible(piece) for piece in text) == visible(text)


def test_words_stay_as_they_are() -> None:
    text = "Grüße, 世界 🎉\tשלום\nمرحبا\u200f"
    assert visible(text) == text
    assert visible("a\r\nb") == "a\nb"


def test_a_console_keeps_its_own_colours_and_no_others() -> None:
    file = io.StringIO()
    console = safe_console(file=file, force_terminal=True, color_system="standard")
    console.print("\x1b[31mred", style="bold", markup=False)
    assert file.getvalue() == "\x1b[1m␛[31mred\x1b[0m\n"


def on_a_terminal(words: list[str], **options: object) -> str:
    """Run the command with its messages and results on a terminal, and return what that shows."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "mini_llm", *words], stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:
            pass
        process.wait()
    os.close(master)
    return shown.decode()


@pytest.mark.parametrize(
    "words",
    [
        ["\x1b]0;PWN\x07"],
        ["plan", "--\x1b]0;PWN\x07"],
        ["plan", "--gpu", "\x1b]0;PWN\x07"],
        ["train", "\x1b]0;PWN\x07=1"],
        ["train", "--config", "\x1b]0;PWN\x07"],
        ["train", 'out_dir="\x1b]0;PWN\x07"', "--print-config"],
    ],
    ids=repr,
)
def test_no_word_of_the_command_reaches_the_terminal_raw(words: list[str]) -> None:
    shown = on_a_terminal(words)
    assert "PWN" in shown
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown
