"""Results, on stdout: into a pipe or a file byte for byte, on a terminal without what it would obey.

And the standard streams themselves, which may be closed, full, or left by their reader.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from mini_llm.errors import Interrupted, UserError
from mini_llm.terminal import leave, safe_console, visible

if TYPE_CHECKING:
    from rich.console import Console


def write(text: str) -> None:
    """Write a piece of a result at once.

    Raises:
        UserError: stdout is closed, or its disk is full.
        Interrupted: its reader has gone.
    """
    with writing():
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def line(text: str = "") -> None:
    """Write a result and end its line; raises as `write`."""
    write(f"{text}\n")


def console(*, soft_wrap: bool = True) -> Console:
    """Return a console for tables and curves on stdout; use it inside `writing`."""
    return safe_console(soft_wrap=soft_wrap, file=sys.stdout)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn what goes wrong with stdout inside the block into a message."""
    try:
        yield
    except BrokenPipeError:  # typer would end with 1
        raise Interrupted(signal.SIGPIPE, "") from None
    except OSError as problem:
        leave(sys.stdout, 1)
        raise UserError(f"cannot write to standard output: {problem.strerror or problem}") from None


def read_stdin() -> str:
    """Return all of stdin.

    Raises:
        UserError: it is closed, or a folder.
    """
    try:
        return sys.stdin.read()
    except OSError as problem:
        raise UserError(f"cannot read standard input: {problem.strerror or problem}") from None


def open_streams() -> None:
    """Make all three standard streams usable, whatever this process was started with.

    A closed one stays taken: otherwise the next file that is opened gets its number, and messages are written into it.
    Reading from a closed stdin and writing to a closed stdout fail (EBADF); what goes to a closed stderr is dropped.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (ends with the process)
    if sys.stdout is None:
        sys.stdout = _text_to(1)
    if sys.stderr is None:
        sys.stderr = _text_to(2)
    for stream in (sys.stdin, sys.stdout):  # bytes that are not UTF-8 come in, or a narrow terminal cannot show a 😀
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _text_to(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", closefd=False)


def flush() -> None:
    """Write what waits in stdout; raises as `write`. At the interpreter's end a failure would be a traceback."""
    with writing():
        sys.stdout.flush()


def settle(*, quiet: bool) -> None:
    """Leave nothing for the interpreter's end, where what cannot be written is a traceback or exit code 120.

    `quiet`: nothing more may be said, the reader has gone.
    """
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
            failed = False
        except (OSError, ValueError):
            failed = True
        if failed or quiet:
            leave(stream, number)
